/* SPDX-License-Identifier: MIT */
/*
 * Locks that are taken at every exit: uncontended, each costs two atomic instructions and no call (glibc's mutex
 * costs half as much again in code that finds out which kind of mutex it is).
 */
#ifndef KC_LOCK_H
#define KC_LOCK_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct kc_mutex {
	_Atomic uint32_t state; /* 0: free, 1: held, 2: held, and somebody may wait in the kernel */
};

void kc_mutex_wait(struct kc_mutex *mutex);
void kc_mutex_wake(struct kc_mutex *mutex);

static inline void kc_mutex_init(struct kc_mutex *mutex)
{
	atomic_init(&mutex->state, 0);
}

static inline void kc_mutex_lock(struct kc_mutex *mutex)
{
	uint32_t free = 0;

	if (__builtin_expect(!atomic_compare_exchange_strong_explicit(&mutex->state, &free, 1,
								      memory_order_acquire,
								      memory_order_relaxed),
			     0))
		kc_mutex_wait(mutex);
}

static inline void kc_mutex_unlock(struct kc_mutex *mutex)
{
	if (__builtin_expect(atomic_exchange_explicit(&mutex->state, 0, memory_order_release) == 2,
			     0))
		kc_mutex_wake(mutex);
}

static inline void kc_mutex_cleanup(struct kc_mutex **mutex)
{
	kc_mutex_unlock(*mutex);
}

/* Hold it to the end of the enclosing block. */
#define kc_hold_mutex(m)                                                                           \
	struct kc_mutex *kc_held_mutex_                                                            \
		__attribute__((cleanup(kc_mutex_cleanup), unused)) = (kc_mutex_lock(m), (m))

/* A recursive one. The device lock is one: an access holds it, and what the device calls may take it again. */
struct kc_lock {
	struct kc_mutex mutex;
	unsigned int depth; /* only the owner touches it */
	_Atomic(pthread_t) owner; /* 0: nobody */
};

static inline void kc_lock_init(struct kc_lock *lock)
{
	kc_mutex_init(&lock->mutex);
	atomic_init(&lock->owner, 0);
	lock->depth = 0;
}

static inline bool kc_lock_is_mine(struct kc_lock *lock)
{
	pthread_t owner = atomic_load_explicit(&lock->owner, memory_order_relaxed);

	return owner && owner == pthread_self();
}

static inline void kc_lock_take(struct kc_lock *lock)
{
	if (!kc_lock_is_mine(lock)) {
		kc_mutex_lock(&lock->mutex);
		atomic_store_explicit(&lock->owner, pthread_self(), memory_order_relaxed);
	}
	lock->depth++;
}

static inline void kc_lock_release(struct kc_lock *lock)
{
	if (--lock->depth)
		return;
	atomic_store_explicit(&lock->owner, 0, memory_order_relaxed);
	kc_mutex_unlock(&lock->mutex);
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
