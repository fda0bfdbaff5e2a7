// SPDX-License-Identifier: MIT
#include "sink.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cleanup.h"

#define FIRST_CAPACITY 4096

struct kc_sink *kc_sink_create(size_t limit, int fd, struct kc_error *err)
{
	struct kc_sink *sink = calloc(1, sizeof(*sink));

	if (!sink) {
		kc_fail_os(err, "a byte sink");
		return NULL;
	}
	atomic_init(&sink->refs, 1);
	kc_mutex_init(&sink->lock);
	sink->limit = limit;
	sink->fd = fd;
	return sink;
}

struct kc_sink *kc_sink_get(struct kc_sink *sink)
{
	atomic_fetch_add_explicit(&sink->refs, 1, memory_order_relaxed);
	return sink;
}

void kc_sink_put(struct kc_sink *sink)
{
	if (!sink || atomic_fetch_sub_explicit(&sink->refs, 1, memory_order_acq_rel) != 1)
		return;
	free(sink->ring);
	free(sink);
}

/* Copy out of the ring, which may wrap. */
static void copy_out(const struct kc_sink *sink, uint8_t *data, size_t size)
{
	size_t first = sink->capacity - sink->start;

	if (first > size)
		first = size;
	if (!size)
		return;
	memcpy(data, sink->ring + sink->start, first);
	memcpy(data + first, sink->ring, size - first);
}

static void forget(struct kc_sink *sink, size_t size)
{
	sink->start += size;
	if (sink->start >= sink->capacity)
		sink->start -= sink->capacity;
	sink->length -= size;
}

/* Room for `wanted` bytes as far as the limit and the memory go; less is not an error. */
static void grow(struct kc_sink *sink, size_t wanted)
{
	size_t capacity = sink->capacity ? sink->capacity : FIRST_CAPACITY;
	uint8_t *ring;

	while (capacity < wanted && capacity <= SIZE_MAX / 2)
		capacity *= 2;
	if (capacity > sink->limit)
		capacity = sink->limit;
	if (capacity <= sink->capacity)
		return;
	ring = malloc(capacity);
	if (!ring)
		return;
	copy_out(sink, ring, sink->length);
	free(sink->ring);
	sink->ring = ring;
	sink->capacity = capacity;
	sink->start = 0;
}

/* Keep the bytes: what was written longest ago makes room. */
static void keep(struct kc_sink *sink, const uint8_t *data, size_t size)
{
	size_t end, first;

	if (size > sink->capacity - sink->length)
		grow(sink, size > SIZE_MAX - sink->length ? SIZE_MAX : sink->length + size);
	if (size > sink->capacity) {
		sink->dropped += size - sink->capacity;
		data += size - sink->capacity;
		size = sink->capacity;
	}
	if (!size)
		return;
	if (size > sink->capacity - sink->length) {
		size_t excess = size - (sink->capacity - sink->length);

		sink->dropped += excess;
		forget(sink, excess);
	}
	end = sink->start + sink->length;
	if (end >= sink->capacity)
		end -= sink->capacity;
	first = sink->capacity - end;
	if (first > size)
		first = size;
	memcpy(sink->ring + end, data, first);
	memcpy(sink->ring, data + first, size - first);
	sink->length += size;
}

/* How many of the bytes the file did not take. */
static size_t write_all(int fd, const uint8_t *data, size_t size)
{
	while (size) {
		ssize_t n = write(fd, data, size);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			break;
		data += n;
		size -= (size_t)n;
	}
	return size;
}

static __attribute__((noinline)) void append(struct kc_sink *sink, const uint8_t *data, size_t size)
{
	size_t lost = 0;

	/* Not under the lock: readers need not wait for a slow file. */
	if (sink->fd >= 0)
		lost = write_all(sink->fd, data, size);

	kc_hold_mutex(&sink->lock);
	sink->total += size;
	sink->dropped += lost;
	keep(sink, data, size);
}

/* One byte, where there is room for it and no file: what a console writes. */
static bool append_byte(struct kc_sink *sink, uint8_t byte)
{
	size_t end;

	kc_hold_mutex(&sink->lock);
	if (sink->length == sink->capacity)
		return false;
	sink->total++;
	end = sink->start + sink->length++;
	sink->ring[end < sink->capacity ? end : end - sink->capacity] = byte;
	return true;
}

kc_exit_path void kc_sink_append(struct kc_sink *sink, const uint8_t *data, size_t size)
{
	if (size != 1 || sink->fd >= 0 || !append_byte(sink, *data))
		append(sink, data, size);
}

size_t kc_sink_length(struct kc_sink *sink)
{
	kc_hold_mutex(&sink->lock);
	return sink->length;
}

size_t kc_sink_read(struct kc_sink *sink, uint8_t *data, size_t size, bool take)
{
	kc_hold_mutex(&sink->lock);
	if (size > sink->length)
		size = sink->length;
	copy_out(sink, data, size);
	if (take)
		forget(sink, size);
	return size;
}

kc_exit_path static int sink_access(void *opaque, struct kc_access *access, struct kc_error *err)
{
	size_t size = (size_t)access->size * access->count;

	(void)err;
	if (access->is_write)
		kc_sink_append(opaque, access->data, size);
	else
		memset(access->data, 0xff, size);
	return 0;
}

static void sink_release(void *opaque)
{
	kc_sink_put(opaque);
}

struct kc_device kc_sink_device(struct kc_sink *sink)
{
	return (struct kc_device){
		.access = sink_access,
		.release = sink_release,
		.opaque = kc_sink_get(sink),
		.string = true,
		.brief_writes = sink->fd < 0,
	};
}
