// SPDX-License-Identifier: MIT
#define _GNU_SOURCE 1 /* gettid */
#include "queue.h"

#include <stdlib.h>
#include <unistd.h>

#include "cleanup.h"
#include "kick.h"
#include "vcpu.h"

/*
 * The lock is held for a few instructions at a time and never while somebody else's code runs: an event's
 * functions are called without it. So it may be taken whatever else a thread holds.
 */

struct kc_queue *kc_queue_create(uint64_t tick_frequency, struct kc_error *err)
{
	struct kc_queue *queue;

	if (!tick_frequency) {
		kc_fail(err, KC_ERR_VALUE, "the tick frequency must be at least 1 Hz");
		return NULL;
	}
	queue = calloc(1, sizeof(*queue));
	if (!queue) {
		kc_fail_os(err, "an event queue");
		return NULL;
	}
	atomic_init(&queue->refs, 1);
	atomic_init(&queue->weak, 1);
	pthread_mutex_init(&queue->lock, NULL);
	queue->tick_frequency = tick_frequency;
	atomic_init(&queue->now, 0);
	atomic_init(&queue->next, KC_NEVER);
	return queue;
}

struct kc_queue *kc_queue_get(struct kc_queue *queue)
{
	atomic_fetch_add_explicit(&queue->refs, 1, memory_order_relaxed);
	return queue;
}

static void put_event(struct kc_event *event)
{
	if (event->put)
		event->put(event->opaque);
}

void kc_queue_clear(struct kc_queue *queue)
{
	for (;;) {
		struct kc_event *event;

		pthread_mutex_lock(&queue->lock);
		event = queue->count ? queue->heap[--queue->count] : NULL;
		if (event)
			event->index = 0;
		if (!queue->count)
			atomic_store_explicit(&queue->next, KC_NEVER, memory_order_release);
		pthread_mutex_unlock(&queue->lock);
		if (!event)
			return;
		put_event(event);
	}
}

void kc_queue_put(struct kc_queue *queue)
{
	if (!queue || atomic_fetch_sub_explicit(&queue->refs, 1, memory_order_acq_rel) != 1)
		return;
	kc_queue_clear(queue);
	kc_queue_put_weak(queue);
}

struct kc_queue *kc_queue_get_weak(struct kc_queue *queue)
{
	atomic_fetch_add_explicit(&queue->weak, 1, memory_order_relaxed);
	return queue;
}

void kc_queue_put_weak(struct kc_queue *queue)
{
	if (!queue || atomic_fetch_sub_explicit(&queue->weak, 1, memory_order_acq_rel) != 1)
		return;
	pthread_mutex_destroy(&queue->lock);
	free(queue->heap);
	free(queue->vcpus);
	free(queue);
}

/* ---- the heap: a parent comes before its children; an event's index is its place + 1 ---- */

static bool before(const struct kc_event *a, const struct kc_event *b)
{
	if (a->when != b->when)
		return a->when < b->when;
	if (a->priority != b->priority)
		return a->priority < b->priority;
	return a->order < b->order;
}

static void place(struct kc_queue *queue, size_t i, struct kc_event *event)
{
	queue->heap[i] = event;
	event->index = i + 1;
}

static void sift_up(struct kc_queue *queue, size_t i)
{
	struct kc_event *event = queue->heap[i];

	while (i && before(event, queue->heap[(i - 1) / 2])) {
		place(queue, i, queue->heap[(i - 1) / 2]);
		i = (i - 1) / 2;
	}
	place(queue, i, event);
}

static void sift_down(struct kc_queue *queue, size_t i)
{
	struct kc_event *event = queue->heap[i];

	for (;;) {
		size_t child = 2 * i + 1;

		if (child >= queue->count)
			break;
		if (child + 1 < queue->count && before(queue->heap[child + 1], queue->heap[child]))
			child++;
		if (!before(queue->heap[child], event))
			break;
		place(queue, i, queue->heap[child]);
		i = child;
	}
	place(queue, i, event);
}

/* What follows a change of the heap. */
static void heap_changed(struct kc_queue *queue)
{
	/*
	 * In one order with who is inside a run (kick_others): either we see the vCPU there, or it sees this when
	 * it looks how long it may stay in the guest.
	 */
	atomic_store(&queue->next, queue->count ? queue->heap[0]->when : KC_NEVER);
}

static void heap_remove(struct kc_queue *queue, struct kc_event *event)
{
	size_t i = event->index - 1;
	struct kc_event *last = queue->heap[--queue->count];

	event->index = 0;
	if (last != event) {
		place(queue, i, last);
		sift_down(queue, i);
		sift_up(queue, last->index - 1);
	}
	heap_changed(queue);
}

static int heap_reserve(struct kc_queue *queue, struct kc_error *err)
{
	size_t capacity = queue->capacity ? queue->capacity * 2 : 16;
	struct kc_event **heap;

	if (queue->count < queue->capacity)
		return 0;
	heap = reallocarray(queue->heap, capacity, sizeof(*heap));
	if (!heap)
		return kc_fail_os(err, "scheduling an event");
	queue->heap = heap;
	queue->capacity = capacity;
	return 0;
}

/* ---- scheduling ---- */

/* An entry in progress was given the time of another event: it must end, to be given this one's. */
static void kick_others(struct kc_queue *queue)
{
	for (size_t i = 0; i < queue->vcpu_count; i++)
		kc_kick_from_elsewhere(queue->vcpus[i]);
}

/* Under the lock. 1: it was scheduled before, so that the queue has its reference already. */
static int schedule(struct kc_queue *queue, struct kc_event *event, uint64_t when,
		    struct kc_error *err)
{
	int moved = event->index != 0;

	if (!atomic_load_explicit(&queue->refs, memory_order_acquire))
		return kc_fail(err, KC_ERR_CLOSED, "the event's queue is gone");
	if (when == KC_NEVER)
		return kc_fail(err, KC_ERR_VALUE,
			       "an event must be due before tick %llu, the end of time",
			       (unsigned long long)KC_NEVER);
	if (!moved && heap_reserve(queue, err))
		return -1;
	event->when = when;
	event->order = queue->order++;
	if (moved)
		sift_down(queue, event->index - 1);
	else
		queue->heap[queue->count++] = event;
	sift_up(queue, moved ? event->index - 1 : queue->count - 1);
	heap_changed(queue);
	if (queue->heap[0] == event)
		kick_others(queue);
	return moved;
}

/* The time, that of entries in progress included. */
static uint64_t live_now(struct kc_queue *queue)
{
	uint64_t now = kc_queue_now(queue);

	for (size_t i = 0; i < queue->vcpu_count; i++) {
		uint64_t tick = kc_vcpu_live_tick(queue->vcpus[i]);

		if (tick > now)
			now = tick;
	}
	return now;
}

uint64_t kc_queue_live_now(struct kc_queue *queue)
{
	kc_hold(&queue->lock);

	return live_now(queue);
}

bool kc_queue_moves(struct kc_queue *queue, const struct kc_vcpu *but)
{
	kc_hold(&queue->lock);

	for (size_t i = 0; i < queue->vcpu_count; i++) {
		pid_t thread = atomic_load(&queue->vcpus[i]->kick.thread);

		/* Not what the same thread runs further out. */
		if (thread && thread != atomic_load(&but->kick.thread) &&
		    !atomic_load(&queue->vcpus[i]->waiting))
			return true;
	}
	return false;
}

static int schedule_at(struct kc_queue *queue, struct kc_event *event, uint64_t tick, bool is_delay,
		       struct kc_error *err)
{
	uint64_t now;
	int result;

	if (event->get)
		event->get(event->opaque);
	pthread_mutex_lock(&queue->lock);
	now = is_delay ? live_now(queue) : kc_queue_now(queue);
	/* What leads past the end of time is refused below. */
	if (is_delay)
		tick = tick > KC_NEVER - now ? KC_NEVER : now + tick;
	/* Compared with one reading of the time: it goes on meanwhile, and a delay of 0 is no mistake. */
	if (tick < now)
		result = kc_fail(err, KC_ERR_VALUE,
				 "tick %llu has passed: it is tick %llu already; use a delay",
				 (unsigned long long)tick, (unsigned long long)now);
	else
		result = schedule(queue, event, tick, err);
	pthread_mutex_unlock(&queue->lock);
	if (result)
		put_event(event);
	return result < 0 ? -1 : 0;
}

int kc_queue_schedule(struct kc_queue *queue, struct kc_event *event, uint64_t when,
		      struct kc_error *err)
{
	return schedule_at(queue, event, when, false, err);
}

int kc_queue_schedule_after(struct kc_queue *queue, struct kc_event *event, uint64_t delay,
			    struct kc_error *err)
{
	return schedule_at(queue, event, delay, true, err);
}

bool kc_queue_cancel(struct kc_queue *queue, struct kc_event *event)
{
	bool scheduled;

	pthread_mutex_lock(&queue->lock);
	scheduled = event->index != 0;
	if (scheduled)
		heap_remove(queue, event);
	pthread_mutex_unlock(&queue->lock);
	if (scheduled)
		put_event(event);
	return scheduled;
}

/* ---- the passing of time ---- */

/* The next event that is due by `until`, taken out, and the time is its; NULL: the time is `until`. */
static struct kc_event *take_due(struct kc_queue *queue, uint64_t until)
{
	struct kc_event *event = NULL;

	kc_hold(&queue->lock);
	if (queue->count && queue->heap[0]->when <= until) {
		event = queue->heap[0];
		heap_remove(queue, event);
		kc_queue_advance(queue, event->when);
	} else if (until != KC_NEVER) {
		kc_queue_advance(queue, until);
	}
	return event;
}

int kc_queue_service(struct kc_queue *queue, uint64_t until, size_t *called, struct kc_error *err)
{
	struct kc_event *event;
	size_t count = 0;
	int result = 0;

	while (!result && (event = take_due(queue, until))) {
		count++;
		result = event->call(event->opaque, err);
		put_event(event);
	}
	if (called)
		*called = count;
	return result ? -1 : 0;
}

/* ---- the vCPUs that live by it ---- */

int kc_queue_attach(struct kc_queue *queue, struct kc_vcpu *vcpu, struct kc_error *err)
{
	kc_hold(&queue->lock);
	if (queue->vcpu_count == queue->vcpu_capacity) {
		size_t capacity = queue->vcpu_capacity ? queue->vcpu_capacity * 2 : 4;
		struct kc_vcpu **vcpus = reallocarray(queue->vcpus, capacity, sizeof(*vcpus));

		if (!vcpus)
			return kc_fail_os(err, "attaching a vCPU to an event queue");
		queue->vcpus = vcpus;
		queue->vcpu_capacity = capacity;
	}
	queue->vcpus[queue->vcpu_count++] = vcpu;
	return 0;
}

void kc_queue_detach(struct kc_queue *queue, struct kc_vcpu *vcpu)
{
	kc_hold(&queue->lock);
	for (size_t i = 0; i < queue->vcpu_count; i++) {
		if (queue->vcpus[i] != vcpu)
			continue;
		queue->vcpus[i] = queue->vcpus[--queue->vcpu_count];
		return;
	}
}
