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
	_Atomic(void *) owner; /* NULL: nobody */
};

/* Which thread this is: what pthread_self() returns, without a call of another library's function. */
static inline void *kc_thread(void)
{
	return __builtin_thread_pointer();
}

static inline void kc_lock_init(struct kc_lock *lock)
{
	kc_mutex_init(&lock->mutex);
	atomic_init(&lock->owner, NULL);
	lock->depth = 0;
}

static inline bool kc_lock_is_mine(struct kc_lock *lock)
{
	return atomic_load_explicit(&lock->owner, memory_order_relaxed) == kc_thread();
}

/* Where it is known that the thread does not hold it yet. */
static inline void kc_lock_take_first(struct kc_lock *lock)
{
	kc_mutex_lock(&lock->mutex);
	atomic_store_explicit(&lock->owner, kc_thread(), memory_order_relaxed);
	lock->depth = 1;
}

static inline void kc_lock_take(struct kc_lock *lock)
{
	if (kc_lock_is_mine(lock))
		lock->depth++;
	else
		kc_lock_take_first(lock);
}

/* Where it was taken once. */
static inline void kc_lock_release_last(struct kc_lock *lock)
{
	lock->depth = 0;
	atomic_store_explicit(&lock->owner, NULL, memory_order_relaxed);
	kc_mutex_unlock(&lock->mutex);
}

static inline void kc_lock_release(struct kc_lock *lock)
{
	if (!--lock->depth)
		kc_lock_release_last(lock);
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
