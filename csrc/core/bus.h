/* SPDX-License-Identifier: MIT */
/*
 * The bus: ranges of ports and of physical addresses, and the devices behind them. A device in C fills a
 * struct kc_device; it is called with the VM's device lock held, on the thread of the vCPU that accesses it.
 */
#ifndef KC_BUS_H
#define KC_BUS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "errors.h"

struct kc_vcpu;
struct kc_vm;

struct kc_access {
	struct kc_vcpu *vcpu; /* who accesses; NULL for a coalesced write, whose vCPU is not known */
	uint64_t offset; /* from the start of the range */
	uint8_t *data; /* size * count bytes in the guest's order, to take or to fill */
	uint32_t size; /* bytes in an item: 1, 2, 4 or 8 (odd sizes come from a page's edge) */
	uint32_t count; /* items; more than 1 only for devices with .string */
	bool is_write;
	uint64_t latency; /* out: ticks that the access took */
};

struct kc_device {
	/* 0, or -1 with *err filled: the error comes out of the run. */
	int (*access)(void *opaque, struct kc_access *access, struct kc_error *err);
	void (*release)(void *opaque); /* may be NULL; called once, when it is off the bus */
	void *opaque;
	bool string; /* takes a repeated string instruction in one access */
	/*
	 * A write, also of a string, is some nanoseconds' work: without latency, errors, callbacks or system calls, and it
	 * looks at nothing but the data.
	 */
	bool brief_writes;
};

enum kc_space { KC_MMIO, KC_IO };

struct kc_range {
	unsigned int refs; /* guarded by the VM's device lock, like all of this */
	unsigned int users; /* of the device: the bus, and calls in progress */
	_Atomic(struct kc_vm *) vm; /* NULL once removed; may be read without the lock */
	enum kc_space space;
	uint64_t base, size;
	struct kc_device device;
	bool coalesced;
};

struct kc_bus {
	struct kc_range **ranges; /* sorted, without overlap */
	size_t count, capacity;
	struct kc_range *last; /* the last one that was found */
};

/* On success the range owns the device (and calls its release), with a reference for the caller. */
struct kc_range *kc_bus_map(struct kc_vm *vm, enum kc_space space, uint64_t base, uint64_t size,
			    const struct kc_device *device, bool coalesced, struct kc_error *err);
int kc_range_remove(struct kc_range *range, struct kc_error *err);
void kc_range_put(struct kc_range *range, struct kc_vm *vm);
struct kc_range *kc_bus_find(struct kc_bus *bus, uint64_t address);
/*
 * One access, split into items where the device does not take strings. 1: nobody is there.
 * vcpu may be NULL. Takes the device lock.
 */
int kc_bus_access(struct kc_vm *vm, enum kc_space space, uint64_t address, struct kc_access *access,
		  struct kc_error *err);
/* A write to a device with .brief_writes, by a thread that does not hold the device lock. False: nothing was done. */
bool kc_bus_write_briefly(struct kc_vm *vm, enum kc_space space, uint64_t address,
			  struct kc_access *access);
void kc_bus_destroy(struct kc_bus *bus);

/*
 * The first 8 bytes, at most, as a number, little-endian. Each common size is one load: a number gathered from
 * bytes in memory waits until all of them are there, which takes longer than most other things in an access.
 */
static inline uint64_t kc_bytes_value(const uint8_t *data, uint32_t size)
{
	uint64_t value = 0;
	uint32_t word;
	uint16_t half;

	switch (size) {
	case 1:
		return *data;
	case 2:
		memcpy(&half, data, sizeof(half));
		return half;
	case 4:
		memcpy(&word, data, sizeof(word));
		return word;
	case 8:
		memcpy(&value, data, sizeof(value));
		return value;
	}
	memcpy(&value, data, size < 8 ? size : 8);
	return value;
}

/* What a device in C most often wants: the item as a number, little-endian. */
uint64_t kc_access_value(const struct kc_access *access);
void kc_access_set_value(struct kc_access *access, uint64_t value);

#endif
