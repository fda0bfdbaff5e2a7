// SPDX-License-Identifier: MIT
#include "guest.h"

static struct guest guest;
static struct recorder a, b;

static int access_at(enum kc_space space, uint64_t address, void *data, uint32_t size,
		     uint32_t count, bool is_write)
{
	struct kc_access access = {
		.data = data, .size = size, .count = count, .is_write = is_write
	};

	return kc_bus_access(guest.vm, space, address, &access, &err);
}

static int write_byte(enum kc_space space, uint64_t address, uint8_t value)
{
	return access_at(space, address, &value, 1, 1, true);
}

static void reset(void)
{
	memset(&a, 0, sizeof(a));
	memset(&b, 0, sizeof(b));
}

static void test_edges(void)
{
	struct kc_range *first, *second;
	uint8_t byte = 0;

	reset();
	first = map_recorder(&guest, KC_IO, 0x10, 8, &a);
	second = map_recorder(&guest, KC_IO, 0x18, 1, &b);
	check(first && second);
	check(write_byte(KC_IO, 0x0f, 1) == 1 && write_byte(KC_IO, 0x19, 1) == 1);
	check(write_byte(KC_MMIO, 0x10, 1) == 1); /* another space */
	check(write_byte(KC_IO, 0x10, 1) == 0 && write_byte(KC_IO, 0x17, 2) == 0);
	check(a.count == 2 && a.noted[0].offset == 0 && a.noted[1].offset == 7 &&
	      a.noted[1].value == 2);
	/* The last that was found, and then its neighbour: the cache gives neither away. */
	check(write_byte(KC_IO, 0x18, 3) == 0 && b.count == 1 && b.noted[0].offset == 0);
	check(write_byte(KC_IO, 0x17, 3) == 0 && write_byte(KC_IO, 0x18, 3) == 0);
	check(a.count == 3 && b.count == 2);
	b.answer = 0x5a;
	check(!access_at(KC_IO, 0x18, &byte, 1, 1, false) && byte == 0x5a);

	/* What overlaps is refused, the range and its device stay the caller's. */
	for (uint64_t base = 9; base < 0x19; base++)
		check(!map_recorder(&guest, KC_IO, base, 8, &b) && err.kind == KC_ERR_VALUE);
	check(!map_recorder(&guest, KC_IO, 0, 0x10000, &b));
	check(b.released == 0);

	check_ok(kc_range_remove(first, &err));
	check_ok(kc_range_remove(first, &err)); /* again: nothing */
	check(write_byte(KC_IO, 0x17, 1) == 1);
	check(write_byte(KC_IO, 0x18, 1) == 0);
	kc_range_put(first, guest.vm);
	check(a.released == 1);
	check_ok(kc_range_remove(second, &err));
	kc_range_put(second, guest.vm);
	check(b.released == 1);
}

static void test_ends(void)
{
	struct kc_range *port, *top;

	reset();
	check(!map_recorder(&guest, KC_IO, 0xffff, 2, &a) && err.kind == KC_ERR_VALUE);
	check(!map_recorder(&guest, KC_IO, 0x10000, 1, &a) && err.kind == KC_ERR_VALUE);
	check(!map_recorder(&guest, KC_IO, UINT64_MAX, 2, &a) && err.kind == KC_ERR_VALUE);
	check(!map_recorder(&guest, KC_IO, 0, 0, &a) && err.kind == KC_ERR_VALUE);
	check(!map_recorder(&guest, KC_MMIO, UINT64_MAX, 2, &a) && err.kind == KC_ERR_VALUE);
	check(!map_recorder(&guest, KC_MMIO, 1, UINT64_MAX, &b) == false);
	check(b.count == 0);
	check(write_byte(KC_MMIO, UINT64_MAX, 1) == 0 && b.noted[0].offset == UINT64_MAX - 1);
	check(write_byte(KC_MMIO, 0, 1) == 1);
	check(guest.vm->bus[KC_MMIO].count == 1);
	top = kc_bus_find(&guest.vm->bus[KC_MMIO], 77);
	check(top && !kc_range_remove(top, &err));
	kc_range_put(top, guest.vm);
	port = map_recorder(&guest, KC_IO, 0xffff, 1, &a);
	top = map_recorder(&guest, KC_MMIO, UINT64_MAX, 1, &a);
	check(port && top);
	check(!map_recorder(&guest, KC_MMIO, UINT64_MAX - 7, 8, &a));
	check(write_byte(KC_IO, 0xffff, 1) == 0 && write_byte(KC_IO, 0xfffe, 1) == 1);
	check(write_byte(KC_MMIO, UINT64_MAX, 1) == 0 &&
	      write_byte(KC_MMIO, UINT64_MAX - 1, 1) == 1);
	check(a.count == 2 && a.noted[0].offset == 0 && a.noted[1].offset == 0);
	check_ok(kc_range_remove(port, &err) || kc_range_remove(top, &err));
	kc_range_put(port, guest.vm);
	kc_range_put(top, guest.vm);
}

static void remove_itself(struct recorder *recorder, struct kc_access *access)
{
	struct kc_range *range = recorder->opaque, *other;

	check_ok(kc_range_remove(range, &err));
	check(recorder->count == 1);
	/* Another takes its place at once, and gives its own place up to nobody. */
	other = map_recorder(&guest, KC_IO, 0x30, 4, &b);
	check(other);
	b.opaque = other;
	access->latency = 7;
}

static void test_removal_inside(void)
{
	struct kc_range *range;

	reset();
	range = map_recorder(&guest, KC_IO, 0x30, 4, &a);
	check(range);
	a.opaque = range;
	a.then = remove_itself;
	check(write_byte(KC_IO, 0x31, 1) == 0);
	check(write_byte(KC_IO, 0x31, 2) == 0 && a.count == 1 && b.count == 1);
	kc_range_put(range, guest.vm);
	check(a.released == 1);
	check_ok(kc_range_remove(b.opaque, &err));
	kc_range_put(b.opaque, guest.vm);
}

static void add_latency(struct recorder *recorder, struct kc_access *access)
{
	access->latency = 10;
}

static void test_strings(void)
{
	struct kc_device device = recorder_device(&b);
	struct kc_range *split, *whole;
	uint16_t items[5] = { 1, 2, 3, 4, 5 };
	struct kc_access access = {
		.data = (uint8_t *)items, .size = 2, .count = 5, .is_write = true
	};

	reset();
	split = map_recorder(&guest, KC_IO, 0x40, 2, &a);
	device.string = true;
	whole = kc_bus_map(guest.vm, KC_IO, 0x42, 2, &device, false, &err);
	check(split && whole);
	a.then = add_latency;
	check(!kc_bus_access(guest.vm, KC_IO, 0x40, &access, &err));
	check(a.count == 5 && access.latency == 50);
	for (size_t i = 0; i < 5; i++)
		check(a.noted[i].value == i + 1 && a.noted[i].size == 2 && a.noted[i].count == 1 &&
		      a.noted[i].offset == 0);
	a.answer = 0xbeef;
	check(!access_at(KC_IO, 0x40, items, 2, 5, false));
	for (size_t i = 0; i < 5; i++)
		check(items[i] == 0xbeef);
	/* An error ends it. */
	a.fails = KC_ERR_VALUE;
	a.count = 0;
	check(access_at(KC_IO, 0x40, items, 2, 5, true) == -1 && a.count == 1);
	check(!access_at(KC_IO, 0x42, items, 2, 5, true) && b.count == 1 && b.noted[0].count == 5);
	check_ok(kc_range_remove(split, &err) || kc_range_remove(whole, &err));
	kc_range_put(split, guest.vm);
	kc_range_put(whole, guest.vm);
}

static void test_many(void)
{
	static struct kc_range *ranges[300];
	unsigned int seed = 1;

	reset();
	for (size_t i = 0; i < 300; i++) {
		size_t at = i * 7 % 300; /* not in their order */

		ranges[at] = map_recorder(&guest, KC_MMIO, 0x100000 + at * 16, 8, &a);
		check(ranges[at]);
	}
	for (int i = 0; i < 20000; i++) {
		uint64_t address = 0x100000 - 8 + (uint64_t)rand_r(&seed) % (300 * 16 + 16);
		size_t at = (address - 0x100000) / 16;
		bool there = address >= 0x100000 && at < 300 && address % 16 < 8 && ranges[at];
		size_t count = a.count;

		check(write_byte(KC_MMIO, address, 0) == !there);
		check(a.count == count + there);
		if (there)
			check(a.noted[count % 4096].offset == address % 16);
		if (there && i % 100 == 0) {
			check_ok(kc_range_remove(ranges[at], &err));
			kc_range_put(ranges[at], guest.vm);
			ranges[at] = NULL;
		}
	}
	/* The rest goes with the VM; who keeps a range can still let go of it. */
	kc_vm_close(guest.vm);
	for (size_t i = 0; i < 300; i++) {
		if (!ranges[i])
			continue;
		check_ok(kc_range_remove(ranges[i], &err));
		kc_range_put(ranges[i], guest.vm);
	}
	check(a.released == 300);
	check(write_byte(KC_MMIO, 0x100000, 0) == 1);
	check(!map_recorder(&guest, KC_MMIO, 0, 1, &a) && err.kind == KC_ERR_CLOSED);
}

int main(void)
{
	guest = make_guest();
	test_edges();
	test_ends();
	test_removal_inside();
	test_strings();
	test_many();
	free_guest(&guest);
	return 0;
}
