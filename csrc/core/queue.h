/* SPDX-License-Identifier: MIT */
/* The event queue: callbacks at ticks, by time, then priority, then order of scheduling (V1, V7). */
#ifndef KC_QUEUE_H
#define KC_QUEUE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "errors.h"

#define KC_NEVER UINT64_MAX

struct kc_queue;
struct kc_vcpu;

struct kc_event {
	uint64_t when; /* guarded by the queue's lock, like all of this */
	int priority;
	uint64_t order;
	size_t index; /* in the heap, from 1; 0: not scheduled */
	int (*call)(void *opaque, struct kc_error *err);
	/* The queue owns a reference while the event is scheduled or being called. */
	void (*get)(void *opaque);
	void (*put)(void *opaque);
	void *opaque;
};

struct kc_queue {
	atomic_int refs; /* of those who use it: without any its events are forgotten */
	atomic_int weak; /* of those who only know it, such as its events; and one for all users */
	pthread_mutex_t lock;
	uint64_t tick_frequency;
	_Atomic uint64_t now; /* only grows */
	_Atomic uint64_t next; /* when the first event is due, KC_NEVER: none */
	struct kc_event **heap;
	size_t count, capacity;
	uint64_t order;
	struct kc_vcpu **vcpus; /* those that run on it, to be kicked */
	size_t vcpu_count, vcpu_capacity;
};

struct kc_queue *kc_queue_create(uint64_t tick_frequency, struct kc_error *err);
struct kc_queue *kc_queue_get(struct kc_queue *queue);
void kc_queue_put(struct kc_queue *queue);
/* For what the queue itself may own: the structure stays, the events do not. */
struct kc_queue *kc_queue_get_weak(struct kc_queue *queue);
void kc_queue_put_weak(struct kc_queue *queue);

int kc_queue_schedule(struct kc_queue *queue, struct kc_event *event, uint64_t when,
		      struct kc_error *err);
/* delay counts from now; where a vCPU is in the guest, from the time that it has reached. */
int kc_queue_schedule_after(struct kc_queue *queue, struct kc_event *event, uint64_t delay,
			    struct kc_error *err);
bool kc_queue_cancel(struct kc_queue *queue, struct kc_event *event);
/* Move the time on to `until` (never back), calling what is due on the way; *called counts. */
int kc_queue_service(struct kc_queue *queue, uint64_t until, size_t *called, struct kc_error *err);

/* The time, that of entries in progress included. */
uint64_t kc_queue_live_now(struct kc_queue *queue);
/* Whether another vCPU moves the time: one that is in a run and does not wait itself. */
bool kc_queue_moves(struct kc_queue *queue, const struct kc_vcpu *but);

/* Forget all events: their owners' references are given back. */
void kc_queue_clear(struct kc_queue *queue);

int kc_queue_attach(struct kc_queue *queue, struct kc_vcpu *vcpu, struct kc_error *err);
void kc_queue_detach(struct kc_queue *queue, struct kc_vcpu *vcpu);

static inline uint64_t kc_queue_now(struct kc_queue *queue)
{
	return atomic_load_explicit(&queue->now, memory_order_acquire);
}

static inline uint64_t kc_queue_next(struct kc_queue *queue)
{
	return atomic_load(&queue->next);
}

/* Move the time on to a tick before which nothing is due; never back. */
static inline void kc_queue_advance(struct kc_queue *queue, uint64_t tick)
{
	uint64_t now = atomic_load_explicit(&queue->now, memory_order_relaxed);

	while (now < tick &&
	       !atomic_compare_exchange_weak_explicit(&queue->now, &now, tick, memory_order_release,
						      memory_order_relaxed))
		;
}

#endif
