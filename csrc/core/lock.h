/* SPDX-License-Identifier: MIT */
/*
 * A recursive mutex whose uncontended path is one compare and one pthread call. The device lock is one: an
 * access holds it, and what the device calls may take it again.
 */
#ifndef KC_LOCK_H
#define KC_LOCK_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

struct kc_lock {
	pthread_mutex_t mutex;
	_Atomic(pthread_t) owner; /* 0: nobody */
	unsigned int depth; /* only the owner touches it */
};

static inline void kc_lock_init(struct kc_lock *lock)
{
	pthread_mutex_init(&lock->mutex, NULL);
	atomic_init(&lock->owner, 0);
	lock->depth = 0;
}

static inline void kc_lock_destroy(struct kc_lock *lock)
{
	pthread_mutex_destroy(&lock->mutex);
}

static inline bool kc_lock_is_mine(struct kc_lock *lock)
{
	return atomic_load_explicit(&lock->owner, memory_order_relaxed) == pthread_self();
}

static inline void kc_lock_take(struct kc_lock *lock)
{
	if (!kc_lock_is_mine(lock)) {
		pthread_mutex_lock(&lock->mutex);
		atomic_store_explicit(&lock->owner, pthread_self(), memory_order_relaxed);
	}
	lock->depth++;
}

static inline void kc_lock_release(struct kc_lock *lock)
{
	if (--lock->depth)
		return;
	atomic_store_explicit(&lock->owner, 0, memory_order_relaxed);
	pthread_mutex_unlock(&lock->mutex);
}

/* Let go of it however often it was taken, and take it back just as often. */
static inline unsigned int kc_lock_drop(struct kc_lock *lock)
{
	unsigned int depth = lock->depth;

	lock->depth = 1;
	kc_lock_release(lock);
	return depth;
}

static inline void kc_lock_retake(struct kc_lock *lock, unsigned int depth)
{
	kc_lock_take(lock);
	lock->depth = depth;
}

#endif
