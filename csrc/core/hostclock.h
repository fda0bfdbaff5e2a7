/* SPDX-License-Identifier: MIT */
/* The host's cycle counter: constant rate, read without a system call. */
#ifndef KC_HOSTCLOCK_H
#define KC_HOSTCLOCK_H

#include <stdint.h>

static inline uint64_t kc_hostclock(void)
{
#if defined(__x86_64__)
	uint32_t low, high;

	/*
	 * Without a fence before it: around a system call it is off by what the processor looks ahead, some tens
	 * of nanoseconds at most, and a fence costs as much at every exit.
	 */
	__asm__ volatile("rdtsc" : "=a"(low), "=d"(high) : : "memory");
	return (uint64_t)high << 32 | low;
#elif defined(__aarch64__)
	uint64_t count;

	__asm__ volatile("isb\n\tmrs %0, cntvct_el0" : "=r"(count) : : "memory");
	return count;
#elif defined(__riscv)
	uint64_t count;

	__asm__ volatile("rdtime %0" : "=r"(count) : : "memory");
	return count;
#else
#error "no cycle counter is known for this architecture"
#endif
}

/* Its frequency in Hz, measured against the monotonic clock the first time (some milliseconds). */
double kc_hostclock_frequency(void);

#endif
