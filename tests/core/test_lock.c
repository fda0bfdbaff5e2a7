// SPDX-License-Identifier: MIT
/* The locks of the exit's path: they exclude, they nest, and nobody is left asleep. */
#include <pthread.h>
#include <sched.h>

#include "check.h"
#include "lock.h"

#define THREADS 4
#define ROUNDS 50000

static struct kc_mutex mutex;
static struct kc_lock lock;
static unsigned long plain, nested;

static void *work(void *arg)
{
	(void)arg;
	for (int i = 0; i < ROUNDS; i++) {
		{
			kc_hold_mutex(&mutex);
			plain++;
			/* Held over a change of threads, so that others really wait. */
			if (i % 500 == 0)
				sched_yield();
		}
		kc_lock_take(&lock);
		kc_lock_take(&lock);
		nested++;
		kc_lock_release(&lock);
		check(kc_lock_is_mine(&lock));
		if (i % 500 == 0)
			sched_yield();
		kc_lock_release(&lock);
		check(!kc_lock_is_mine(&lock));
	}
	return NULL;
}

static void test_exclusion(void)
{
	pthread_t threads[THREADS];

	for (int i = 0; i < THREADS; i++)
		check(!pthread_create(&threads[i], NULL, work, NULL));
	for (int i = 0; i < THREADS; i++)
		check(!pthread_join(threads[i], NULL));
	check(plain == (unsigned long)THREADS * ROUNDS);
	check(nested == (unsigned long)THREADS * ROUNDS);
}

static void test_drop_and_retake(void)
{
	unsigned int depth;

	kc_lock_take(&lock);
	kc_lock_take(&lock);
	depth = kc_lock_drop(&lock);
	check(depth == 2);
	check(!kc_lock_is_mine(&lock));
	kc_lock_retake(&lock, depth);
	kc_lock_release(&lock);
	check(kc_lock_is_mine(&lock));
	kc_lock_release(&lock);
	check(!kc_lock_is_mine(&lock));
}

int main(void)
{
	kc_mutex_init(&mutex);
	kc_lock_init(&lock);
	test_exclusion();
	test_drop_and_retake();
	return 0;
}
