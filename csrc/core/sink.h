/* SPDX-License-Identifier: MIT */
/* A device that collects the bytes a guest writes: a console's output, without the interpreter. */
#ifndef KC_SINK_H
#define KC_SINK_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "bus.h"
#include "lock.h"

struct kc_sink {
	atomic_int refs;
	struct kc_mutex lock;
	uint8_t *ring; /* capacity bytes; the oldest kept byte is at start */
	size_t capacity, start, length, limit;
	uint64_t total, dropped;
	int fd; /* bytes are also written there; -1: no */
};

struct kc_sink *kc_sink_create(size_t limit, int fd, struct kc_error *err);
struct kc_sink *kc_sink_get(struct kc_sink *sink);
void kc_sink_put(struct kc_sink *sink);
void kc_sink_append(struct kc_sink *sink, const uint8_t *data, size_t size);
size_t kc_sink_length(struct kc_sink *sink);
/* Copies up to size bytes from the oldest on; take: they are then no longer kept. */
size_t kc_sink_read(struct kc_sink *sink, uint8_t *data, size_t size, bool take);
/* The sink as a device: all writes to its range are bytes; reads give all ones. Takes a reference. */
struct kc_device kc_sink_device(struct kc_sink *sink);

#endif
