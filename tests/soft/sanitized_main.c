// SPDX-License-Identifier: Apache-2.0
/*
 * The software controller as a program of its own, for a build with sanitizers. Its arguments are
 * those of udrv/soft/_child.py: the configuration in hexadecimal, and more that it ignores.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <udrv/soft.h>

int main(int argc, char **argv)
{
	unsigned char config[sizeof(struct udrv_soft_config)];
	size_t len = argc > 1 ? strlen(argv[1]) / 2 : 0;

	if (len != sizeof(config)) {
		fprintf(stderr, "a configuration of %zu bytes belongs here\n", sizeof(config));
		return 2;
	}
	for (size_t i = 0; i < len; i++) {
		char digits[3] = { argv[1][2 * i], argv[1][2 * i + 1], '\0' };

		config[i] = (unsigned char)strtoul(digits, NULL, 16);
	}
	return udrv_soft_child(config, len);
}
