// SPDX-License-Identifier: MIT
#include "sink.h"

#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "check.h"

static struct kc_error err;

static void append(struct kc_sink *sink, const char *text)
{
	kc_sink_append(sink, (const uint8_t *)text, strlen(text));
}

static void check_holds(struct kc_sink *sink, const char *text)
{
	uint8_t data[64];
	size_t size = kc_sink_read(sink, data, sizeof(data), false);

	check(kc_sink_length(sink) == strlen(text));
	check(size == strlen(text));
	check(!memcmp(data, text, size));
}

static void test_limit(void)
{
	struct kc_sink *sink = kc_sink_create(8, -1, &err);
	uint8_t data[4];

	check(sink);
	check_holds(sink, "");
	append(sink, "abcdef");
	append(sink, "gh");
	check_holds(sink, "abcdefgh");
	append(sink, "i");
	check_holds(sink, "bcdefghi");
	append(sink, "jklm");
	check_holds(sink, "fghijklm");
	check(sink->total == 13 && sink->dropped == 5);
	append(sink, "0123456789abcdef");
	check_holds(sink, "89abcdef");
	check(sink->total == 29 && sink->dropped == 21);
	check(kc_sink_read(sink, data, sizeof(data), true) == 4 && !memcmp(data, "89ab", 4));
	check_holds(sink, "cdef");
	append(sink, "xyz");
	check_holds(sink, "cdefxyz");
	kc_sink_put(sink);
}

static void test_keeps_nothing(void)
{
	struct kc_sink *sink = kc_sink_create(0, -1, &err);

	check(sink);
	append(sink, "abc");
	append(sink, "d");
	check_holds(sink, "");
	check(sink->total == 4 && sink->dropped == 4);
	kc_sink_put(sink);
}

/* Grows while the ring is wrapped: the order stays. */
static void test_grows(void)
{
	struct kc_sink *sink = kc_sink_create(1 << 20, -1, &err);
	static uint8_t data[300000];
	uint32_t next = 0, expected = 0;

	check(sink);
	for (int round = 0; round < 200; round++) {
		for (int i = 0; i < 1500; i++, next++) {
			uint8_t byte = (uint8_t)(next * 7);

			kc_sink_append(sink, &byte, 1);
		}
		for (size_t i = 0, n = kc_sink_read(sink, data, 1000, true); i < n; i++)
			check(data[i] == (uint8_t)(expected++ * 7));
	}
	for (size_t i = 0, n = kc_sink_read(sink, data, sizeof(data), true); i < n; i++)
		check(data[i] == (uint8_t)(expected++ * 7));
	check(expected == next && !sink->dropped && !kc_sink_length(sink));
	kc_sink_put(sink);
}

static void test_device(void)
{
	struct kc_sink *sink = kc_sink_create(64, -1, &err);
	struct kc_device device = kc_sink_device(sink);
	uint8_t data[] = "hello";
	struct kc_access access = { .data = data, .size = 1, .count = 5, .is_write = true };

	check(device.string);
	check(!device.access(device.opaque, &access, &err));
	access.size = 2;
	access.count = 1;
	check(!device.access(device.opaque, &access, &err));
	check_holds(sink, "hellohe");
	access.is_write = false;
	check(!device.access(device.opaque, &access, &err));
	check(data[0] == 0xff && data[1] == 0xff && data[2] == 'l');
	check(!access.latency);
	kc_sink_put(sink);
	device.release(device.opaque);
}

/* What a full pipe does not take is counted, and kept all the same. */
static void test_fd(void)
{
	static uint8_t data[1 << 20];
	int fds[2];
	struct kc_sink *sink;
	ssize_t n, taken = 0;

	check(!pipe2(fds, O_NONBLOCK));
	sink = kc_sink_create(sizeof(data), fds[1], &err);
	check(sink);
	memset(data, 'x', sizeof(data));
	kc_sink_append(sink, data, sizeof(data));
	while ((n = read(fds[0], data, sizeof(data))) > 0)
		taken += n;
	check(taken > 0 && sink->dropped == sizeof(data) - (size_t)taken);
	check(kc_sink_length(sink) == sizeof(data));
	kc_sink_put(sink);
	close(fds[0]);
	close(fds[1]);
}

#define PER_WRITER 100000

static void *writer(void *arg)
{
	for (int i = 0; i < PER_WRITER; i++)
		kc_sink_append(arg, (const uint8_t *)"ab", 2);
	return NULL;
}

static void test_threads(void)
{
	struct kc_sink *sink = kc_sink_create(1 << 16, -1, &err);
	pthread_t threads[2];
	uint64_t got = 0;
	uint8_t data[256];

	check(sink);
	for (int i = 0; i < 2; i++)
		check(!pthread_create(&threads[i], NULL, writer, sink));
	for (int i = 0; i < 20000; i++) {
		size_t n = kc_sink_read(sink, data, sizeof(data), true);

		for (size_t k = 0; k < n; k++)
			check(data[k] == (k % 2 ? 'b' : 'a'));
		got += n;
	}
	for (int i = 0; i < 2; i++)
		check(!pthread_join(threads[i], NULL));
	check(sink->total == 4 * PER_WRITER);
	check(got + kc_sink_length(sink) + sink->dropped == sink->total);
	kc_sink_put(sink);
}

int main(void)
{
	test_limit();
	test_keeps_nothing();
	test_grows();
	test_device();
	test_fd();
	test_threads();
	return 0;
}
