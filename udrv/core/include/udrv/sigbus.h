/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sigbus.h - survive device memory that vanishes while it is mapped
 *
 * A BAR whose device was revoked, switched off or put to sleep, and a vfio-user region whose file
 * the server cut short, stay mapped; the next load or store is a SIGBUS, which ends the process.
 * udrv_sigbus_watch() names a mapped range. From then on a SIGBUS inside of it puts a page of all
 * ones over the page that was touched, marks the range as gone, and lets the instruction run
 * again: it reads all ones, as it does from a device that left the bus, and stores go nowhere. So
 * a driver needs one way to notice, not two; udrv_sigbus_gone() tells it which of them it was.
 *
 * The handler is installed by the first udrv_sigbus_watch() of a process, for good. What it does
 * not know (an address outside of all ranges, a SIGBUS sent by kill(), a memory error found by the
 * machine) it passes on to the handler that was there before, with that one's flags and mask:
 *
 *	SA_SIGINFO or plain	is called
 *	SIG_DFL			the process ends by the signal, as without us
 *	SIG_IGN			a signal that was sent is ignored; a fault ends the process, because
 *				the kernel does not ignore faults either
 *
 * What it cannot do:
 * - A handler that the program installs later stands before it, until the next range is watched: then
 *   it comes beneath. Until then it has to pass on in its turn. Python's faulthandler does not:
 *   enable it before a device is opened.
 * - A thread that blocks SIGBUS is ended by a fault all the same: the kernel forces the signal.
 * - Regions in huge pages: a part of one cannot be replaced, so the signal is passed on.
 *
 * All functions may be called by any thread at any time. A forked child keeps the handler and the
 * ranges; like its memory, both are its own.
 */
#ifndef UDRV_SIGBUS_H
#define UDRV_SIGBUS_H

#include <stddef.h>
#include <stdint.h>

#define UDRV_SIGBUS_RANGES 4096 /* that can be watched at a time */

/**
 * udrv_sigbus_watch() - watch a mapped range
 * @start:	its first byte, on a page
 * @size:	bytes; the rest of the last page belongs to it
 *
 * Before the range is touched for the first time. It must not overlap one that is watched.
 *
 * Return: a number that names the range, 0 or more; -EINVAL (not on a page, empty, or past the end
 * of memory); -ENOSPC (UDRV_SIGBUS_RANGES are watched).
 */
int udrv_sigbus_watch(void *start, size_t size);

/**
 * udrv_sigbus_unwatch() - end it
 * @range:	what udrv_sigbus_watch() returned
 *
 * Before the range is unmapped, and after its last use by any thread: what is mapped there next
 * is not the device's.
 */
void udrv_sigbus_unwatch(int range);

/**
 * udrv_sigbus_gone() - whether a fault was met in the range
 * @range:	what udrv_sigbus_watch() returned
 *
 * A thread that has read a byte of a page that was replaced sees 1 from then on.
 *
 * Return: 1 or 0.
 */
int udrv_sigbus_gone(int range);

#endif /* UDRV_SIGBUS_H */
