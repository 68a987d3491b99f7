#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Sets up what `make` needs, and nothing that is already there.
#
#   setup.sh venv [EXTRAS]    .venv with the package installed editable; EXTRAS as in pyproject.toml
#   setup.sh system [bench]   system packages of the tests and of the laboratory, and of the benches
#   setup.sh fuzzer           a compiler with libFuzzer; its name is the last line of the output
#
# System packages are installed when this runs as root. Otherwise the exact line to run is printed
# and the exit status is 3. apt is not touched while nothing is missing.
#
# PYTHON=/path/to/python picks the interpreter of a new .venv.
set -eu
cd "$(dirname "$0")/.."

# a non-root PATH often lacks sbin, where nvme-cli lives
PATH="$PATH:/usr/sbin:/sbin"
VENV=.venv

say() {
	echo "setup: $*"
}

die() {
	echo "setup: $*" >&2
	exit 1
}

# --- system packages ---------------------------------------------------------------------------

apt_install() {
	DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 \
		install --no-install-recommends "$@" </dev/null
}

apt_update() {
	command -v apt-get >/dev/null && apt-get -qq -o DPkg::Lock::Timeout=300 update </dev/null
}

# Every name is known to apt and has a version that could be installed.
apt_knows() {
	for name in "$@"; do
		apt-cache policy "$name" 2>/dev/null | grep -q 'Candidate: [^(]' || return 1
	done
}

# Install packages (names of Debian and Ubuntu), or tell how.
install_packages() {
	[ $# -gt 0 ] || return 0
	if ! command -v apt-get >/dev/null; then
		die "this system has no apt-get; install what these Debian packages hold: $*"
	fi
	if [ "$(id -u)" -ne 0 ]; then
		echo "setup: system packages are missing. Run this, then the same make command again:" >&2
		echo "    sudo apt-get install -y --no-install-recommends $*" >&2
		exit 3
	fi
	say "installing $*"
	if apt_knows "$@" && apt_install "$@"; then
		return 0
	fi
	# no package lists yet, or lists so old that their versions are gone from the archive
	apt_update
	apt_install "$@"
}

# need PACKAGE TEST...: add PACKAGE to $missing unless the test succeeds
missing=
need() {
	package=$1
	shift
	"$@" >/dev/null 2>&1 || missing="$missing $package"
}

is_static() {
	# the laboratory's initramfs has no C library to load
	path=$(command -v busybox) && ! head -c 2048 "$path" | grep -q 'ld-linux'
}

system() {
	need qemu-system-x86 command -v qemu-system-x86_64
	need busybox-static is_static
	need kmod command -v modinfo
	need zstd command -v zstd
	need fio command -v fio
	need nvme-cli command -v nvme
	need xfsprogs command -v mkfs.xfs
	need debian-archive-keyring test -e /usr/share/keyrings/debian-archive-keyring.gpg
	need valgrind command -v valgrind
	need gcc-aarch64-linux-gnu command -v aarch64-linux-gnu-gcc
	need libc6-dev-arm64-cross test -e /usr/aarch64-linux-gnu/include/stdio.h
	if [ "${1:-}" = bench ]; then
		need strace command -v strace
		need linux-perf perf --version
	fi
	# shellcheck disable=SC2086 # one word per package
	install_packages $missing
}

# A clang may be there without its run-time libraries: Debian has them apart.
has_fuzzer() {
	command -v "$1" >/dev/null 2>&1 &&
		echo 'int LLVMFuzzerTestOneInput(const char *d, unsigned long n) { return !d && n; }' |
		"$1" -x c - -fsanitize=fuzzer,address,undefined -o /dev/null >/dev/null 2>&1
}

find_fuzzer() {
	for compiler in clang clang-21 clang-20 clang-19 clang-18 clang-17 clang-16 clang-15 clang-14; do
		has_fuzzer $compiler && return
	done
	return 1
}

fuzzer() {
	if ! find_fuzzer; then
		install_packages clang libclang-rt-dev
		find_fuzzer || die "no clang here has libFuzzer; install clang and libclang-rt-dev"
	fi
	echo "$compiler"
}

# --- Python ------------------------------------------------------------------------------------

# A Python 3.11 or newer that runs (a pyenv shim may not), with the GIL: the extension modules use
# the limited API.
is_python() {
	command -v "$1" >/dev/null 2>&1 && "$1" -c 'import sys, sysconfig
sys.exit(sys.version_info < (3, 11) or bool(sysconfig.get_config_var("Py_GIL_DISABLED")))' \
		>/dev/null 2>&1
}

has_venv() {
	"$1" -c 'import ensurepip, venv' >/dev/null 2>&1
}

has_headers() {
	"$1" -c 'import pathlib, sys, sysconfig
sys.exit(not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists())' >/dev/null 2>&1
}

CANDIDATES="python3 /usr/bin/python3 python3.14 python3.13 python3.12 python3.11"

# Sets $python: the first candidate that is complete, else the first that apt can complete.
find_python() {
	if [ -n "${PYTHON:-}" ]; then
		is_python "$PYTHON" || die "PYTHON=$PYTHON is no Python 3.11 or newer (with the GIL)"
		python=$PYTHON
		return
	fi
	for python in $CANDIDATES; do
		if is_python "$python" && has_venv "$python" && has_headers "$python"; then
			return
		fi
	done
	for python in $CANDIDATES; do
		is_python "$python" || continue
		case $("$python" -c 'import sys; print(sys.base_prefix)') in
		/usr) return ;;
		esac
	done
	# none: does this system offer one?
	if ! apt_knows python3 && [ "$(id -u)" -eq 0 ]; then
		apt_update
	fi
	set -- $(apt-cache policy python3 2>/dev/null |
		sed -n 's/^ *Candidate: \([0-9]*\)\.\([0-9]*\).*/\1 \2/p')
	if [ "${1:-0}" -eq 3 ] && [ "${2:-0}" -ge 11 ]; then
		install_packages python3 python3-venv python3-dev
		python=/usr/bin/python3
		is_python "$python" && return
	fi
	die "no Python 3.11 or newer found, and the package sources have none: set PYTHON=/path/to/it" \
		"(Debian 12, Ubuntu 24.04 and newer have one)"
}

need_liburing() {
	# udrv.rings is linked against it; whatever its version, setup.py decides if that will do
	need liburing-dev sh -c 'echo "#include <liburing.h>" | gcc -E -'
}

complete_python() {
	version=$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
	missing=
	need "$version-venv" has_venv "$python"
	need "$version-dev" has_headers "$python"
	need gcc command -v gcc
	need libc6-dev sh -c 'echo "#include <stdio.h>" | gcc -E - >/dev/null'
	need_liburing
	# shellcheck disable=SC2086
	install_packages $missing
	has_venv "$python" || die "$python still cannot make virtual environments (no ensurepip)"
	has_headers "$python" || die "$python still has no Python.h; set PYTHON to one that has"
}

venv() {
	if ! "$VENV/bin/python" -c 'import pip' >/dev/null 2>&1; then
		find_python
		complete_python
		say "making $VENV with $("$python" --version) ($(command -v "$python"))"
		# --clear: what is there, if anything, does not work
		"$python" -m venv --clear "$VENV"
	else
		missing=
		need_liburing
		# shellcheck disable=SC2086
		install_packages $missing
	fi
	pip="$VENV/bin/python -m pip --disable-pip-version-check --no-input"
	say "installing udrv${1:+[$1]} and its dependencies into $VENV"
	# The build's own requirements stay in .venv: rebuilding an extension then needs no network.
	$pip install -qq 'setuptools>=77' 'cffi>=1.16' wheel
	# `make` builds the extension modules itself, and again when their sources change.
	UDRV_EXTENSIONS='' PYTHONWARNINGS=ignore $pip install -qq --no-build-isolation -e ".${1:+[$1]}"
}

case ${1:-} in
venv) venv "${2:-}" ;;
system) system "${2:-}" ;;
fuzzer) fuzzer ;;
*) die "usage: setup.sh venv [EXTRAS] | system [bench] | fuzzer" ;;
esac
