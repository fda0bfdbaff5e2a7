/* SPDX-License-Identifier: MIT */
/* What a C test needs: a condition that must hold, in every build. */
#ifndef CHECK_H
#define CHECK_H

#include <stdio.h>
#include <stdlib.h>

#define check(condition)                                                                           \
	do {                                                                                       \
		if (!(condition)) {                                                                \
			fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition);  \
			abort();                                                                   \
		}                                                                                  \
	} while (0)

/* The Makefile's word for a test that cannot be made here; the reason is the last line. */
#define skip_test(reason)                                                                          \
	do {                                                                                       \
		puts(reason);                                                                      \
		exit(77);                                                                          \
	} while (0)

#endif
