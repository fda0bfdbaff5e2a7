// SPDX-License-Identifier: MIT
#include "hostclock.h"

#include <pthread.h>
#include <time.h>

static double frequency;
static pthread_once_t once = PTHREAD_ONCE_INIT;

#if defined(__aarch64__)

/* The firmware tells. */
static void measure(void)
{
	uint64_t hz;

	__asm__ volatile("mrs %0, cntfrq_el0" : "=r"(hz));
	frequency = (double)hz;
}

#else

static uint64_t monotonic_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC_RAW, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* Both clocks at one moment: of several tries the one that took the shortest. */
static void read_both(uint64_t *count, uint64_t *ns)
{
	uint64_t best = UINT64_MAX;

	for (int i = 0; i < 16; i++) {
		uint64_t before = kc_hostclock(), now = monotonic_ns(), after = kc_hostclock();

		if (after - before < best) {
			best = after - before;
			*count = before + (after - before) / 2;
			*ns = now;
		}
	}
}

static void measure(void)
{
	uint64_t count, ns, count2, ns2;

	/* 8 ms between readings that are good to some 30 ns: 4 ppm */
	read_both(&count, &ns);
	do {
		read_both(&count2, &ns2);
	} while (ns2 - ns < 8000000);
	frequency = (double)(count2 - count) * 1e9 / (double)(ns2 - ns);
}

#endif

double kc_hostclock_frequency(void)
{
	pthread_once(&once, measure);
	return frequency;
}
