// SPDX-License-Identifier: MIT
#include "guest.h"

#include <sys/mman.h>

static struct guest guest;

static struct kc_slot *add(uint64_t address, size_t size)
{
	struct kc_mapping *mapping = kc_mapping_anonymous(size, &err);
	struct kc_slot *slot;

	check(mapping);
	slot = kc_slot_add(guest.vm, address, mapping, false, false, &err);
	kc_mapping_put(mapping);
	return slot;
}

static void drop(struct kc_slot *slot)
{
	check(!kc_slot_removed(slot));
	check_ok(kc_slot_remove(slot, &err));
	check_ok(kc_slot_remove(slot, &err));
	check(kc_slot_removed(slot));
	kc_slot_put(slot);
}

static void test_sizes(void)
{
	check(!kc_mapping_anonymous(0, &err) && err.kind == KC_ERR_VALUE);
	check(!kc_mapping_anonymous(1, &err) && err.kind == KC_ERR_VALUE);
	check(!kc_mapping_anonymous(0x1001, &err) && err.kind == KC_ERR_VALUE);
	check(!kc_mapping_anonymous(SIZE_MAX & ~0xfffUL, &err) && err.kind == KC_ERR_VALUE);
	check(!kc_mapping_anonymous(1UL << 60, &err) && err.kind == KC_ERR_MEMORY);
	check(!add(0x100001, 0x1000) && err.kind == KC_ERR_VALUE);
	check(!add(UINT64_MAX - 0xfff, 0x2000) && err.kind == KC_ERR_VALUE);
	/* Up to the very end is an address space's right, but no processor has such addresses. */
	check(!add(UINT64_MAX - 0xfff, 0x1000) && err.kind == KC_ERR_OS);
	check(guest.vm->slot_count == 1);
}

static void test_overlap(void)
{
	struct kc_slot *slot = add(0x100000, 0x4000), *below, *above;

	check(slot);
	for (uint64_t address = 0xfd000; address < 0x104000; address += 0x1000)
		check(!add(address, 0x4000) && err.kind == KC_ERR_VALUE);
	check(!add(0xf0000, 0x100000) && !add(0x101000, 0x1000));
	below = add(0xfc000, 0x4000);
	above = add(0x104000, 0x1000);
	check(below && above && guest.vm->slot_count == 4);
	drop(slot);
	slot = add(0x101000, 0x2000);
	check(slot);
	drop(above);
	drop(slot);
	drop(below);
}

static void test_ids(void)
{
	struct kc_slot *slots[20];

	for (int round = 0; round < 3; round++) {
		for (uint64_t i = 0; i < 20; i++)
			check((slots[i] = add(0x100000 + i * 0x10000, 0x1000)));
		for (uint32_t i = 0; i < 20; i++)
			for (uint32_t j = 0; j < i; j++)
				check(slots[i]->id != slots[j]->id);
		check(guest.vm->next_slot <= 21);
		for (size_t i = 0; i < 20; i++)
			drop(slots[i * 7 % 20]);
	}
}

static void test_copies(void)
{
	struct kc_slot *first = add(0x200000, 0x2000), *second = add(0x202000, 0x1000), *third;
	static uint8_t data[0x5000], back[0x5000];

	third = add(0x204000, 0x1000); /* a page is missing before it */
	check(first && second && third);
	for (size_t i = 0; i < sizeof(data); i++)
		data[i] = (uint8_t)(i * 7);
	check_ok(kc_memory_write(guest.vm, 0x200001, data, 0x2ffe, &err));
	check_ok(kc_memory_read(guest.vm, 0x200001, back, 0x2ffe, &err));
	check(!memcmp(data, back, 0x2ffe) && !first->mapping->host[0] &&
	      !second->mapping->host[0xfff]);
	check_ok(kc_memory_write(guest.vm, 0x202fff, data, 1, &err));
	check_ok(kc_memory_write(guest.vm, 0x987654321, data, 0, &err)); /* nothing is anywhere */

	/* All or nothing, and the first address that has none. */
	memset(back, 0x11, sizeof(back));
	check(kc_memory_write(guest.vm, 0x201000, back, 0x4000, &err) == -1);
	check(err.kind == KC_ERR_UNMAPPED && err.address == 0x203000);
	check(first->mapping->host[0x1000] != 0x11);
	check(kc_memory_read(guest.vm, 0x1fffff, back, 2, &err) == -1 && err.address == 0x1fffff);
	check(kc_memory_read(guest.vm, 0x204fff, back, 2, &err) == -1 && err.address == 0x205000);
	check(kc_memory_read(guest.vm, UINT64_MAX, back, 2, &err) == -1 &&
	      err.address == UINT64_MAX);
	check(kc_memory_read(guest.vm, 0, back, 0x5000, &err) == 0);

	/* Between slots that are taken off, the others stay where they are. */
	drop(second);
	check(kc_memory_read(guest.vm, 0x201fff, back, 2, &err) == -1 && err.address == 0x202000);
	check_ok(kc_memory_read(guest.vm, 0x204000, back, 0x1000, &err));
	drop(first);
	drop(third);
}

static void test_files(void)
{
	int fd = memfd_create("guest", MFD_CLOEXEC), ends[2];
	struct kc_mapping *mapping;
	uint8_t byte = 0x77;

	check(fd >= 0 && !ftruncate(fd, 0x3000));
	check(!kc_mapping_file(fd, 0, 0x4000, &err) && err.kind == KC_ERR_VALUE);
	check(!kc_mapping_file(fd, 0x1000, 0x3000, &err) && err.kind == KC_ERR_VALUE);
	check(!kc_mapping_file(fd, 0x800, 0x1000, &err) && err.kind == KC_ERR_VALUE);
	check(!kc_mapping_file(fd, INT64_MAX & ~0xfffULL, 0x1000, &err) &&
	      err.kind == KC_ERR_VALUE);
	check(!kc_mapping_file(-1, 0, 0x1000, &err) && err.kind == KC_ERR_OS);
	check(!pipe(ends));
	check(!kc_mapping_file(ends[0], 0, 0x1000, &err) && err.kind == KC_ERR_VALUE);
	mapping = kc_mapping_file(fd, 0x1000, 0x2000, &err);
	check(mapping);
	mapping->host[5] = byte;
	byte = 0;
	check(pread(fd, &byte, 1, 0x1005) == 1 && byte == 0x77);
	kc_mapping_put(mapping);
	close(fd);
	close(ends[0]);
	close(ends[1]);
}

static int released;

static void release(void *owner)
{
	check(owner == &released);
	released++;
}

static void test_buffers(void)
{
	uint8_t *buffer = aligned_alloc(0x1000, 0x2000);
	struct kc_mapping *mapping;
	struct kc_slot *slot;

	check(buffer);
	check(!kc_mapping_buffer(buffer + 1, 0x1000, release, &released, &err) && !released);
	check(err.kind == KC_ERR_VALUE);
	mapping = kc_mapping_buffer(buffer, 0x2000, release, &released, &err);
	check(mapping);
	slot = kc_slot_add(guest.vm, 0x300000, mapping, false, false, &err);
	check(slot);
	kc_mapping_get(mapping); /* as a view does */
	kc_mapping_put(mapping);
	check_ok(kc_memory_write(guest.vm, 0x300000, "x", 1, &err));
	check(buffer[0] == 'x');
	drop(slot);
	check(!released);
	kc_mapping_put(mapping);
	check(released == 1);
	free(buffer);
}

/* The guest writes what the host reads, and the log knows the pages. */
static void test_dirty_log(void)
{
	struct kc_vcpu *vcpu = make_vcpu(&guest);
	struct kc_slot *slot = add(MMIO, 0x10000);
	kc_auto_free uint64_t *log = NULL;
	size_t pages;

	check(slot);
	check(!kc_slot_dirty_log(slot, &pages, &err) && err.kind == KC_ERR_STATE);
	check_ok(kc_slot_set_log_dirty(slot, true, &err));
	check_ok(kc_slot_set_log_dirty(slot, true, &err));
	/* mov [0x3000], al; mov [0x5000], al; hlt */
	put_code(&guest, CODE, 0xa2, 0, 0x30, 0xa2, 0, 0x50, 0xf4);
	check(run_to_stop(vcpu) == KC_STOP_IDLE);
	log = kc_slot_dirty_log(slot, &pages, &err);
	check(log && pages == 16 && log[0] == (1 << 3 | 1 << 5));
	free(log);
	log = kc_slot_dirty_log(slot, &pages, &err);
	check(log && !log[0]); /* reading it cleared it */
	check_ok(kc_slot_set_log_dirty(slot, false, &err));
	check(!kc_slot_dirty_log(slot, &pages, &err) && err.kind == KC_ERR_STATE);
	check_ok(kc_slot_remove(slot, &err));
	check(kc_slot_set_log_dirty(slot, true, &err) == -1 && err.kind == KC_ERR_CLOSED);
	kc_slot_put(slot);
	kc_vcpu_put(vcpu);
}

static atomic_bool done;

static void *churn(void *arg)
{
	uint64_t base = 0x400000 + 0x10000 * (uint64_t)(uintptr_t)arg;

	while (!atomic_load(&done)) {
		struct kc_slot *slot = add(base, 0x2000);

		check(slot);
		check_ok(kc_slot_set_log_dirty(slot, true, &err));
		drop(slot);
	}
	return NULL;
}

/* Slots come and go while others read. */
static void test_threads(void)
{
	pthread_t threads[2];
	uint8_t data[0x100];

	for (uintptr_t i = 0; i < 2; i++)
		check(!pthread_create(&threads[i], NULL, churn, (void *)i));
	for (int i = 0; i < 2000; i++) {
		size_t count;
		struct kc_slot **slots = kc_memory_slots(guest.vm, &count, &err);

		check(slots);
		for (size_t j = 0; j < count; j++)
			kc_slot_put(slots[j]);
		free(slots);
		check_ok(kc_memory_read(guest.vm, 0xff00, data, sizeof(data), &err));
		if (kc_memory_read(guest.vm, 0x401f80, data, sizeof(data), &err))
			check(err.kind == KC_ERR_UNMAPPED);
	}
	atomic_store(&done, true);
	for (int i = 0; i < 2; i++)
		check(!pthread_join(threads[i], NULL));
}

static void test_closed(void)
{
	struct kc_slot *slot = add(0x500000, 0x1000);
	struct kc_mapping *mapping = kc_mapping_get(slot->mapping);
	uint8_t byte;

	kc_vm_close(guest.vm);
	check(kc_slot_removed(slot));
	check_ok(kc_slot_remove(slot, &err));
	check(kc_memory_read(guest.vm, 0, &byte, 1, &err) == -1 && err.kind == KC_ERR_CLOSED);
	check(!add(0x600000, 0x1000) && err.kind == KC_ERR_CLOSED);
	kc_slot_put(slot);
	mapping->host[0] = 1; /* a view keeps it */
	kc_mapping_put(mapping);
}

int main(void)
{
	guest = make_guest();
	test_sizes();
	test_overlap();
	test_ids();
	test_copies();
	test_files();
	test_buffers();
	test_dirty_log();
	test_threads();
	test_closed();
	free_guest(&guest);
	return 0;
}
