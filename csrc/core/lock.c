// SPDX-License-Identifier: MIT
#include "lock.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

/* What holds one of these is most often over before a sleep has begun. */
#define SPINS 100

static void pause_processor(void)
{
#if defined(__x86_64__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield" : : : "memory");
#else
	__asm__ volatile("" : : : "memory");
#endif
}

void kc_mutex_wait(struct kc_mutex *mutex)
{
	for (int i = 0; i < SPINS; i++) {
		uint32_t free = 0;

		if (atomic_load_explicit(&mutex->state, memory_order_relaxed) == 0 &&
		    atomic_compare_exchange_weak_explicit(
			    &mutex->state, &free, 1, memory_order_acquire, memory_order_relaxed))
			return;
		pause_processor();
	}
	/* Whoever gets it here does not know whether others wait, and so leaves it marked. */
	while (atomic_exchange_explicit(&mutex->state, 2, memory_order_acquire))
		syscall(SYS_futex, &mutex->state, FUTEX_WAIT_PRIVATE, 2, NULL, NULL, 0);
}

void kc_mutex_wake(struct kc_mutex *mutex)
{
	syscall(SYS_futex, &mutex->state, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}
