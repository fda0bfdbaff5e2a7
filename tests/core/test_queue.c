// SPDX-License-Identifier: MIT
#define _GNU_SOURCE 1
#include "queue.h"

#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "check.h"
#include "vcpu.h"

static struct kc_error err;

struct item {
	struct kc_event event;
	struct kc_queue *queue;
	int id;
	int refs;
	uint64_t again; /* schedule it again after that many ticks */
	uint64_t called_at;
	bool fails;
};

static int calls[4096];
static size_t call_count;

static int item_call(void *opaque, struct kc_error *error)
{
	struct item *item = opaque;

	check(item->refs > 0);
	item->called_at = kc_queue_now(item->queue);
	calls[call_count++ % 4096] = item->id;
	if (item->fails)
		return kc_fail(error, KC_ERR_CALLBACK, "as it should");
	if (item->again)
		return kc_queue_schedule_after(item->queue, &item->event, item->again, error);
	return 0;
}

static void item_get(void *opaque)
{
	((struct item *)opaque)->refs++;
}

static void item_put(void *opaque)
{
	((struct item *)opaque)->refs--;
}

static void item_init(struct item *item, struct kc_queue *queue, int id)
{
	*item = (struct item){
		.event = { .call = item_call, .get = item_get, .put = item_put, .opaque = item },
		.queue = queue,
		.id = id,
	};
}

static struct kc_queue *new_queue(void)
{
	struct kc_queue *queue = kc_queue_create(1000000000000, &err);

	check(queue);
	check(kc_queue_next(queue) == KC_NEVER && kc_queue_now(queue) == 0);
	call_count = 0;
	return queue;
}

static void test_order(void)
{
	struct kc_queue *queue = new_queue();
	struct item items[5];
	size_t called;

	for (int i = 0; i < 5; i++)
		item_init(&items[i], queue, i);
	items[3].event.priority = -1;
	check(!kc_queue_schedule(queue, &items[0].event, 20, &err));
	check(!kc_queue_schedule(queue, &items[1].event, 10, &err));
	check(!kc_queue_schedule(queue, &items[2].event, 10, &err));
	check(!kc_queue_schedule(queue, &items[3].event, 10, &err));
	check(!kc_queue_schedule(queue, &items[4].event, 30, &err));
	check(kc_queue_next(queue) == 10);
	check(!kc_queue_service(queue, 9, &called, &err) && called == 0 &&
	      kc_queue_now(queue) == 9);
	check(!kc_queue_service(queue, 25, &called, &err) && called == 4);
	check(!memcmp(calls, (int[]){ 3, 1, 2, 0 }, 4 * sizeof(int)));
	check(items[3].called_at == 10 && items[0].called_at == 20);
	check(kc_queue_now(queue) == 25 && kc_queue_next(queue) == 30);
	check(!kc_queue_service(queue, 3, &called, &err) && called == 0);
	check(kc_queue_now(queue) == 25);
	check(items[0].refs == 0 && items[4].refs == 1);

	check(kc_queue_schedule(queue, &items[0].event, 24, &err) == -1);
	check(err.kind == KC_ERR_VALUE && items[0].refs == 0);
	check(kc_queue_schedule(queue, &items[0].event, KC_NEVER, &err) == -1);
	check(kc_queue_schedule_after(queue, &items[0].event, KC_NEVER - 3, &err) == -1);
	check(err.kind == KC_ERR_VALUE && items[0].refs == 0);

	check(kc_queue_cancel(queue, &items[4].event) && items[4].refs == 0);
	check(!kc_queue_cancel(queue, &items[4].event));
	check(kc_queue_next(queue) == KC_NEVER);
	kc_queue_put(queue);
}

static void test_moved(void)
{
	struct kc_queue *queue = new_queue();
	struct item items[3];
	size_t called;

	for (int i = 0; i < 3; i++) {
		item_init(&items[i], queue, i);
		check(!kc_queue_schedule(queue, &items[i].event, 10 + (uint64_t)i, &err));
	}
	check(!kc_queue_schedule(queue, &items[0].event, 100, &err) && items[0].refs == 1);
	check(kc_queue_next(queue) == 11);
	check(!kc_queue_schedule(queue, &items[2].event, 5, &err));
	check(kc_queue_next(queue) == 5);
	check(kc_queue_schedule(queue, &items[2].event, KC_NEVER, &err) == -1);
	check(kc_queue_next(queue) == 5 && items[2].refs == 1);
	/* To its own tick: it now comes after those that were there. */
	check(!kc_queue_schedule(queue, &items[1].event, 100, &err));
	check(!kc_queue_schedule(queue, &items[0].event, 100, &err));
	check(!kc_queue_service(queue, KC_NEVER, &called, &err) && called == 3);
	check(!memcmp(calls, (int[]){ 2, 1, 0 }, 3 * sizeof(int)));
	check(kc_queue_now(queue) == 100);
	kc_queue_put(queue);
}

static void test_random(void)
{
	struct kc_queue *queue = new_queue();
	static struct item items[1000];
	uint64_t last = 0;
	unsigned int seed = 1;
	size_t called, left = 0;

	for (int i = 0; i < 1000; i++)
		item_init(&items[i], queue, i);
	for (int i = 0; i < 20000; i++) {
		struct item *item = &items[rand_r(&seed) % 1000];

		if (rand_r(&seed) % 3)
			check(!kc_queue_schedule(queue, &item->event,
						 (uint64_t)(rand_r(&seed) % 5000), &err));
		else
			kc_queue_cancel(queue, &item->event);
	}
	for (int i = 0; i < 1000; i++)
		left += items[i].event.index != 0;
	check(left == queue->count);
	check(!kc_queue_service(queue, 5000, &called, &err) && called == left);
	for (size_t i = 0; i < left; i++) {
		check(items[calls[i]].called_at == items[calls[i]].event.when);
		check(items[calls[i]].called_at >= last);
		last = items[calls[i]].called_at;
	}
	for (int i = 0; i < 1000; i++)
		check(items[i].refs == 0);
	kc_queue_put(queue);
}

static void test_again_and_failure(void)
{
	struct kc_queue *queue = new_queue();
	struct item items[2];
	size_t called;

	item_init(&items[0], queue, 0);
	item_init(&items[1], queue, 1);
	items[0].again = 10;
	items[1].fails = true;
	check(!kc_queue_schedule(queue, &items[0].event, 10, &err));
	check(!kc_queue_schedule(queue, &items[1].event, 30, &err));
	check(kc_queue_service(queue, 100, &called, &err) == -1 && err.kind == KC_ERR_CALLBACK);
	check(called == 3 && kc_queue_now(queue) == 30 && items[1].refs == 0);
	check(!kc_queue_service(queue, 100, &called, &err) && called == 8);
	check(items[0].refs == 1);

	/* The last user goes: the events are forgotten, who knows the queue can still ask. */
	kc_queue_get_weak(queue);
	kc_queue_put(queue);
	check(items[0].refs == 0);
	check(kc_queue_schedule(queue, &items[0].event, 1000, &err) == -1);
	check(err.kind == KC_ERR_CLOSED && items[0].refs == 0);
	check(!kc_queue_cancel(queue, &items[0].event));
	kc_queue_put_weak(queue);
}

static void test_clear(void)
{
	struct kc_queue *queue = new_queue();
	struct item items[20];

	for (int i = 0; i < 20; i++) {
		item_init(&items[i], queue, i);
		check(!kc_queue_schedule(queue, &items[i].event, 10, &err));
	}
	kc_queue_clear(queue);
	for (int i = 0; i < 20; i++)
		check(items[i].refs == 0 && items[i].event.index == 0);
	check(kc_queue_next(queue) == KC_NEVER && queue->count == 0);
	check(!kc_queue_schedule(queue, &items[0].event, 10, &err));
	kc_queue_put(queue);
	check(items[0].refs == 0);
}

/* ---- many threads schedule, cancel and service at once ---- */

static struct kc_queue *shared;
static atomic_uint shared_calls;
static atomic_bool done;

static int shared_call(void *opaque, struct kc_error *error)
{
	struct kc_event *event = opaque;

	(void)error;
	check(kc_queue_now(shared) >= event->when);
	atomic_fetch_add(&shared_calls, 1);
	return 0;
}

#define PER_THREAD 20000

static void *scheduler(void *arg)
{
	static struct kc_event events[2][PER_THREAD];
	struct kc_event *own = events[(size_t)arg];
	uintptr_t cancelled = 0;
	struct kc_error error;

	for (int i = 0; i < PER_THREAD; i++) {
		own[i] = (struct kc_event){ .call = shared_call, .opaque = &own[i] };
		check(!kc_queue_schedule_after(shared, &own[i], (uint64_t)(i % 50), &error));
		if (i % 3 == 0)
			cancelled += kc_queue_cancel(shared, &own[i]);
	}
	return (void *)cancelled;
}

static void *servicer(void *arg)
{
	struct kc_error error;
	uint64_t tick = 0;

	(void)arg;
	while (!atomic_load(&done)) {
		tick++;
		/* As vCPUs do: without the lock where nothing is due. */
		if (kc_queue_next(shared) > tick)
			kc_queue_advance(shared, tick);
		else
			check(!kc_queue_service(shared, tick, NULL, &error));
	}
	return NULL;
}

static void test_threads(void)
{
	pthread_t schedulers[2], servicers[2];
	void *cancelled;
	unsigned int expected = 2 * PER_THREAD;

	shared = new_queue();
	for (size_t i = 0; i < 2; i++) {
		check(!pthread_create(&schedulers[i], NULL, scheduler, (void *)i));
		check(!pthread_create(&servicers[i], NULL, servicer, NULL));
	}
	for (int i = 0; i < 2; i++) {
		check(!pthread_join(schedulers[i], &cancelled));
		expected -= (unsigned int)(uintptr_t)cancelled;
	}
	atomic_store(&done, true);
	for (int i = 0; i < 2; i++)
		check(!pthread_join(servicers[i], NULL));
	check(!kc_queue_service(shared, KC_NEVER, NULL, &err));
	check(atomic_load(&shared_calls) == expected);
	kc_queue_put(shared);
}

/* ---- a new first event ends the entries of other threads, and only theirs ---- */

struct runner {
	struct kc_vcpu *vcpu;
	sigset_t mask;
};

/* Stands for a thread inside a run: the kick is all it waits for. */
static void *run(void *arg)
{
	struct runner *runner = arg;
	struct timespec limit = { .tv_sec = 20 };

	atomic_store(&runner->vcpu->kick.thread, gettid());
	check(sigtimedwait(&runner->mask, NULL, &limit) == kc_kick_signal());
	atomic_store(&runner->vcpu->kick.thread, 0);
	return NULL;
}

static void test_kick(void)
{
	struct kc_queue *queue = new_queue();
	struct kc_vcpu *vcpu = calloc(1, sizeof(*vcpu));
	struct item items[3];
	struct runner runner = { .vcpu = vcpu };
	sigset_t mask, before, pending;
	pthread_t thread;
	int signal = kc_kick_signal();

	check(vcpu);
	for (int i = 0; i < 3; i++)
		item_init(&items[i], queue, i);
	sigemptyset(&mask);
	sigaddset(&mask, signal);
	check(!pthread_sigmask(SIG_BLOCK, &mask, &before));
	kc_kick_init(&vcpu->kick);
	vcpu->queue = queue;
	check(!kc_queue_attach(queue, vcpu, &err));

	check(!kc_queue_schedule(queue, &items[0].event, 100, &err)); /* nobody runs it */
	atomic_store(&vcpu->kick.thread, gettid());
	check(!kc_queue_schedule(queue, &items[1].event, 50, &err)); /* we do */
	check(!atomic_load(&vcpu->kick.sent));
	check(!sigpending(&pending) && !sigismember(&pending, signal));

	kc_queue_detach(queue, vcpu);
	kc_queue_detach(queue, vcpu);
	check(queue->vcpu_count == 0);
	check(!kc_queue_attach(queue, vcpu, &err));
	atomic_store(&vcpu->kick.thread, 0);
	runner.mask = mask;
	check(!pthread_create(&thread, NULL, run, &runner));
	while (!atomic_load(&vcpu->kick.thread))
		usleep(100);
	check(!kc_queue_schedule(queue, &items[2].event, 200, &err)); /* not the first */
	check(!atomic_load(&vcpu->kick.sent));
	check(!kc_queue_schedule(queue, &items[2].event, 10, &err));
	check(!pthread_join(thread, NULL));
	kc_queue_detach(queue, vcpu);
	kc_queue_put(queue);
	check(!pthread_sigmask(SIG_SETMASK, &before, NULL));
	free(vcpu);
}

int main(void)
{
	test_order();
	test_moved();
	test_random();
	test_again_and_failure();
	test_clear();
	test_threads();
	test_kick();
	return 0;
}
