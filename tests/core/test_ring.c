// SPDX-License-Identifier: MIT
/* V15: coalesced writes come in the guest's order, before the exit that follows them; the ring wraps. */
#include "guest.h"

static struct guest guest;
static struct kc_vcpu *vcpu;
static struct recorder coalesced, plain;

static uint64_t expected; /* the next number of the log */
static size_t before_plain; /* writes that came before the plain access */

static void number(struct recorder *recorder, struct kc_access *access)
{
	check(access->is_write && access->size == 2);
	check(kc_access_value(access) == (expected++ & 0xffff));
}

static void after(struct recorder *recorder, struct kc_access *access)
{
	before_plain = coalesced.count;
}

static struct kc_range *map_coalesced(enum kc_space space, uint64_t base, struct recorder *recorder)
{
	struct kc_device device = recorder_device(recorder);
	struct kc_range *range = kc_bus_map(guest.vm, space, base, 8, &device, true, &err);

	if (!range && err.kind == KC_ERR_UNSUPPORTED)
		skip_test(err.message);
	check(range);
	return range;
}

static void reset(uint16_t start)
{
	memset(&coalesced, 0, sizeof(coalesced));
	memset(&plain, 0, sizeof(plain));
	coalesced.then = number;
	plain.then = after;
	expected = 0;
	set_start(vcpu, start);
	kc_vcpu_wakeup(vcpu);
}

/* mov cx, n; write ax: inc ax; loop write; out 0x20, al; hlt */
static void put_writer(uint16_t n)
{
	put_code(&guest, CODE, 0xb9, n & 0xff, n >> 8, 0xa3, 0, 0, 0x40, 0xe2, 0xfa, 0xe6, 0x20,
		 0xf4);
}

static void test_order_and_wrap(void)
{
	struct kc_range *range = map_coalesced(KC_MMIO, MMIO, &coalesced);
	struct kc_range *other = map_recorder(&guest, KC_IO, 0x20, 1, &plain);
	uint64_t exits;

	check(range && other);
	for (unsigned int i = 0; i < 40; i++) {
		uint16_t n = (uint16_t)(1 + i * 37);

		put_writer(n);
		reset(CODE);
		exits = kc_stat_read(&vcpu->stats, KC_STAT_exits);
		check(run_to_stop(vcpu) == KC_STOP_IDLE);
		check(coalesced.count == n && plain.count == 1 && before_plain == n);
		exits = kc_stat_read(&vcpu->stats, KC_STAT_exits) - exits;
		check(n < 20 || exits < n);
	}
	check(kc_stat_read(&vcpu->stats, KC_STAT_coalesced_mmio) +
		      kc_stat_read(&vcpu->stats, KC_STAT_mmio) ==
	      40 + 37 * 39 * 40 / 2);

	/* An error of the device's holds the rest back, and then they still come before what followed them. */
	put_writer(10);
	reset(CODE);
	coalesced.fails = KC_ERR_VALUE;
	check(run_for(vcpu, KC_NEVER, NULL) == -1 && err.kind == KC_ERR_VALUE &&
	      coalesced.count == 1);
	check(run_to_stop(vcpu) == KC_STOP_IDLE);
	check(coalesced.count == 10 && before_plain == 10 && plain.count == 1);

	/* Removed, they are ordinary accesses to nobody. */
	check_ok(kc_range_remove(range, &err));
	kc_range_put(range, guest.vm);
	reset(CODE);
	check(run_for(vcpu, KC_NEVER, NULL) == -1 && err.kind == KC_ERR_UNASSIGNED &&
	      err.address == MMIO);
	check_ok(kc_range_remove(other, &err));
	kc_range_put(other, guest.vm);
}

static void test_ports(void)
{
	struct kc_range *range = map_coalesced(KC_IO, 0x10, &coalesced);

	/* mov cx, 200; out 0x10, ax; inc ax; loop; hlt */
	put_code(&guest, CODE, 0xb9, 200, 0, 0xe7, 0x10, 0x40, 0xe2, 0xfb, 0xf4);
	kc_vcpu_put(vcpu);
	vcpu = make_vcpu(&guest);
	reset(CODE);
	check(run_to_stop(vcpu) == KC_STOP_IDLE && coalesced.count == 200);
	check_ok(kc_range_remove(range, &err));
	kc_range_put(range, guest.vm);
}

/* A device that runs another vCPU of the VM while its writes are delivered sees each of them once. */
static struct kc_vcpu *inner;

static void number_and_run(struct recorder *recorder, struct kc_access *access)
{
	uint64_t passed;

	number(recorder, access);
	check_ok(kc_vcpu_claim(inner, &err));
	if (!atomic_load(&inner->kick.thread))
		check_ok(kc_vcpu_run(inner, PS_PER_MS / 100, &passed, &err));
	kc_vcpu_release(inner);
}

static void test_nested(void)
{
	struct kc_range *range = map_coalesced(KC_MMIO, MMIO, &coalesced);
	struct kc_range *other = map_recorder(&guest, KC_IO, 0x20, 1, &plain);

	inner = make_vcpu(&guest);
	put_code(&guest, 0x2000, 0xeb, 0xfe);
	set_start(inner, 0x2000);
	put_writer(50);
	reset(CODE);
	coalesced.then = number_and_run;
	check(run_to_stop(vcpu) == KC_STOP_IDLE);
	check(coalesced.count == 50 && expected == 50);
	check_ok(kc_range_remove(range, &err) || kc_range_remove(other, &err));
	kc_range_put(range, guest.vm);
	kc_range_put(other, guest.vm);
	kc_vcpu_put(inner);
}

/* Two vCPUs fill the one ring: each one's own writes keep their order. */
static uint16_t next_of[2];

static void number_of(struct recorder *recorder, struct kc_access *access)
{
	size_t who = access->offset / 2;

	check(who < 2 && kc_access_value(access) == next_of[who]);
	next_of[who]++;
}

static void *run_it(void *arg)
{
	check(run_to_stop(arg) == KC_STOP_IDLE);
	return NULL;
}

static void test_two(void)
{
	struct kc_range *range = map_coalesced(KC_MMIO, MMIO, &coalesced);
	pthread_t thread;

	inner = make_vcpu(&guest);
	/* mov cx, 3000; mov [0 or 2], ax; inc ax; loop; hlt */
	put_code(&guest, CODE, 0xb9, 0xb8, 0x0b, 0xa3, 0, 0, 0x40, 0xe2, 0xfa, 0xf4);
	put_code(&guest, 0x2000, 0xb9, 0xb8, 0x0b, 0xa3, 2, 0, 0x40, 0xe2, 0xfa, 0xf4);
	reset(CODE);
	set_start(inner, 0x2000);
	coalesced.then = number_of;
	check(!pthread_create(&thread, NULL, run_it, inner));
	check(run_to_stop(vcpu) == KC_STOP_IDLE);
	check(!pthread_join(thread, NULL));
	check(next_of[0] == 3000 && next_of[1] == 3000);
	check_ok(kc_range_remove(range, &err));
	kc_range_put(range, guest.vm);
	kc_vcpu_put(inner);
}

int main(void)
{
	guest = make_guest();
	vcpu = make_vcpu(&guest);
	if (!vcpu->ring)
		skip_test("this kernel does not coalesce writes");
	test_order_and_wrap();
	test_ports();
	test_nested();
	test_two();
	kc_vcpu_put(vcpu);
	free_guest(&guest);
	return 0;
}
