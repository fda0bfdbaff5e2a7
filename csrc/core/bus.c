// SPDX-License-Identifier: MIT
#include "bus.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cleanup.h"
#include "vm.h"

static uint64_t last_address(const struct kc_range *range)
{
	return range->base + (range->size - 1);
}

/* The index of the first range that ends at or after the address. */
static size_t position(const struct kc_bus *bus, uint64_t address)
{
	size_t low = 0, high = bus->count;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (last_address(bus->ranges[middle]) < address)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

kc_exit_path struct kc_range *kc_bus_find(struct kc_bus *bus, uint64_t address)
{
	struct kc_range *range = bus->last;
	size_t at;

	/* One comparison: below the base the difference wraps to a large number. */
	if (range && address - range->base < range->size)
		return range;
	at = position(bus, address);
	if (at == bus->count || bus->ranges[at]->base > address)
		return NULL;
	return bus->last = bus->ranges[at];
}

static int check_range(enum kc_space space, uint64_t base, uint64_t size, struct kc_error *err)
{
	if (!size)
		return kc_fail(err, KC_ERR_VALUE, "a range of size 0");
	if (space == KC_IO && (base > 0xffff || size > 0x10000 - base))
		return kc_fail(err, KC_ERR_VALUE,
			       "ports %#" PRIx64 " and %#" PRIx64
			       " more: there are ports 0 to 0xffff",
			       base, size - 1);
	if (size - 1 > UINT64_MAX - base)
		return kc_fail(err, KC_ERR_VALUE,
			       "the range reaches beyond the end of the address space");
	return 0;
}

/* The kernel's zones are 32 bits long, a large range would need several: nobody coalesces one. */
static int set_zone(struct kc_vm *vm, const struct kc_range *range, bool on, struct kc_error *err)
{
	struct kvm_coalesced_mmio_zone zone = {
		.addr = range->base,
		.size = (uint32_t)range->size,
		.pio = range->space == KC_IO,
	};
	int supported;

	if (!on)
		return kc_vm_ioctl(vm, KVM_UNREGISTER_COALESCED_MMIO,
				   "KVM_UNREGISTER_COALESCED_MMIO", &zone, err);
	supported = kc_kvm_check_extension(
		vm->kvm, range->space == KC_IO ? KVM_CAP_COALESCED_PIO : KVM_CAP_COALESCED_MMIO,
		err);
	if (supported < 0)
		return -1;
	if (!supported)
		return kc_fail(
			err, KC_ERR_UNSUPPORTED,
			"this kernel does not coalesce writes (%s): map the range without it",
			range->space == KC_IO ? "KVM_CAP_COALESCED_PIO" : "KVM_CAP_COALESCED_MMIO");
	if (range->size > UINT32_MAX)
		return kc_fail(err, KC_ERR_VALUE, "a coalesced range is smaller than 4 GiB");
	return kc_vm_ioctl(vm, KVM_REGISTER_COALESCED_MMIO, "KVM_REGISTER_COALESCED_MMIO", &zone,
			   err);
}

static int insert(struct kc_vm *vm, struct kc_range *range, struct kc_error *err)
{
	struct kc_bus *bus = &vm->bus[range->space];
	size_t at = position(bus, range->base);

	if (atomic_load(&vm->closed))
		return kc_fail(err, KC_ERR_CLOSED, "the VM was closed");
	if (at < bus->count && bus->ranges[at]->base <= last_address(range))
		return kc_fail(err, KC_ERR_VALUE,
			       "%s %#" PRIx64 "-%#" PRIx64 " overlaps the range %#" PRIx64
			       "-%#" PRIx64 ": remove that first",
			       range->space == KC_IO ? "ports" : "addresses", range->base,
			       last_address(range), bus->ranges[at]->base,
			       last_address(bus->ranges[at]));
	if (bus->count == bus->capacity) {
		size_t capacity = bus->capacity ? bus->capacity * 2 : 8;
		struct kc_range **grown = reallocarray(bus->ranges, capacity, sizeof(*grown));

		if (!grown)
			return kc_fail(err, KC_ERR_MEMORY, "out of memory");
		bus->ranges = grown;
		bus->capacity = capacity;
	}
	if (range->coalesced) {
		if (set_zone(vm, range, true, err))
			return -1;
		atomic_store(&vm->coalesces, true);
	}
	memmove(&bus->ranges[at + 1], &bus->ranges[at], (bus->count - at) * sizeof(*bus->ranges));
	bus->ranges[at] = range;
	bus->count++;
	return 0;
}

struct kc_range *kc_bus_map(struct kc_vm *vm, enum kc_space space, uint64_t base, uint64_t size,
			    const struct kc_device *device, bool coalesced, struct kc_error *err)
{
	struct kc_range *range;
	int failed;

	if (kc_vm_check(vm, err) || check_range(space, base, size, err))
		return NULL;
	range = calloc(1, sizeof(*range));
	if (!range) {
		kc_fail(err, KC_ERR_MEMORY, "out of memory");
		return NULL;
	}
	range->refs = 2; /* the users' and the caller's */
	range->users = 1;
	atomic_init(&range->vm, vm);
	range->space = space;
	range->base = base;
	range->size = size;
	range->device = *device;
	range->coalesced = coalesced;
	kc_lock_take(&vm->device_lock);
	failed = insert(vm, range, err);
	kc_lock_release(&vm->device_lock);
	if (failed) {
		free(range);
		return NULL;
	}
	return range;
}

static void unref(struct kc_range *range)
{
	if (!--range->refs)
		free(range);
}

/* The device goes as soon as nobody can call it: it may itself hold the range's handle. */
static void unuse(struct kc_range *range)
{
	if (__builtin_expect(--range->users, 1))
		return;
	if (range->device.release)
		range->device.release(range->device.opaque);
	unref(range);
}

void kc_range_put(struct kc_range *range, struct kc_vm *vm)
{
	/* In the child of a fork a thread that is not there may hold the lock. */
	if (vm->fork_generation != kc_fork_generation()) {
		unref(range);
		return;
	}
	kc_lock_take(&vm->device_lock);
	unref(range);
	kc_lock_release(&vm->device_lock);
}

static void take_off(struct kc_bus *bus, struct kc_range *range)
{
	size_t at = position(bus, range->base);

	bus->count--;
	memmove(&bus->ranges[at], &bus->ranges[at + 1], (bus->count - at) * sizeof(*bus->ranges));
	if (bus->last == range)
		bus->last = NULL;
	atomic_store(&range->vm, NULL);
	unuse(range);
}

int kc_range_remove(struct kc_range *range, struct kc_error *err)
{
	struct kc_vm *vm = atomic_load(&range->vm);
	int failed = 0;

	if (!vm)
		return 0;
	if (kc_check_fork(vm->fork_generation, err))
		return -1;
	kc_lock_take(&vm->device_lock);
	if (atomic_load(&range->vm)) {
		if (range->coalesced)
			failed = set_zone(vm, range, false, err);
		if (!failed)
			take_off(&vm->bus[range->space], range);
	}
	kc_lock_release(&vm->device_lock);
	return failed;
}

void kc_bus_destroy(struct kc_bus *bus)
{
	while (bus->count)
		take_off(bus, bus->ranges[bus->count - 1]);
	free(bus->ranges);
	memset(bus, 0, sizeof(*bus));
}

kc_exit_path uint64_t kc_access_value(const struct kc_access *access)
{
	return kc_bytes_value(access->data, access->size);
}

void kc_access_set_value(struct kc_access *access, uint64_t value)
{
	memcpy(access->data, &value, access->size < 8 ? access->size : 8);
}

static kc_cold int call_each(struct kc_range *range, struct kc_access *access, struct kc_error *err)
{
	struct kc_access item = *access;
	int failed = 0;

	item.count = 1;
	for (uint32_t i = 0; i < access->count && !failed; i++) {
		item.data = access->data + (size_t)i * access->size;
		item.latency = 0;
		failed = range->device.access(range->device.opaque, &item, err);
		access->latency += item.latency;
	}
	return failed;
}

kc_exit_path int kc_bus_access(struct kc_vm *vm, enum kc_space space, uint64_t address,
			       struct kc_access *access, struct kc_error *err)
{
	struct kc_range *range;
	int result;

	kc_lock_take(&vm->device_lock);
	range = kc_bus_find(&vm->bus[space], address);
	if (__builtin_expect(!range, 0)) {
		kc_lock_release(&vm->device_lock);
		return 1;
	}
	range->users++; /* the device may take itself off the bus */
	access->offset = address - range->base;
	if (__builtin_expect(access->count == 1 || range->device.string, 1))
		result = range->device.access(range->device.opaque, access, err);
	else
		result = call_each(range, access, err);
	unuse(range);
	kc_lock_release(&vm->device_lock);
	return result;
}

kc_exit_path bool kc_bus_write_briefly(struct kc_vm *vm, enum kc_space space, uint64_t address,
				       struct kc_access *access)
{
	struct kc_range *range;
	bool done = false;

	kc_lock_take_first(&vm->device_lock);
	range = kc_bus_find(&vm->bus[space], address);
	if (range && range->device.brief_writes) {
		access->offset = address - range->base;
		range->device.access(range->device.opaque, access, NULL);
		done = true;
	}
	kc_lock_release_last(&vm->device_lock);
	return done;
}
