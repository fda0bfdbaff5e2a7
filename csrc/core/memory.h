/* SPDX-License-Identifier: MIT */
/* Host memory that guests see: the bytes (struct kc_mapping, shared by reference) and the slots that place them. */
#ifndef KC_MEMORY_H
#define KC_MEMORY_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "errors.h"

enum kc_backing { KC_ANONYMOUS, KC_FILE, KC_BUFFER };

struct kc_mapping {
	atomic_int refs;
	enum kc_backing backing;
	uint8_t *host;
	size_t size;
	void (*release)(void *owner); /* KC_BUFFER: gives the caller's buffer back */
	void *owner;
};

/* size: a multiple of the page size, not 0. */
struct kc_mapping *kc_mapping_anonymous(size_t size, struct kc_error *err);
struct kc_mapping *kc_mapping_file(int fd, uint64_t offset, size_t size, struct kc_error *err);
/* release(owner) is called when the last reference goes; on failure it is not called. */
struct kc_mapping *kc_mapping_buffer(void *host, size_t size, void (*release)(void *owner),
				     void *owner, struct kc_error *err);
struct kc_mapping *kc_mapping_get(struct kc_mapping *mapping);
void kc_mapping_put(struct kc_mapping *mapping);

struct kc_vm;

struct kc_slot {
	atomic_int refs;
	_Atomic(struct kc_vm *) vm; /* NULL once removed; written under the VM's memory lock */
	struct kc_mapping *mapping;
	uint64_t address;
	uint32_t id;
	bool readonly, log_dirty;
};

/* Returns a slot with a reference for the caller; the VM has one of its own. */
struct kc_slot *kc_slot_add(struct kc_vm *vm, uint64_t address, struct kc_mapping *mapping,
			    bool readonly, bool log_dirty, struct kc_error *err);
int kc_slot_remove(struct kc_slot *slot, struct kc_error *err);
int kc_slot_set_log_dirty(struct kc_slot *slot, bool on, struct kc_error *err);
/* One bit a page, (pages + 63) / 64 words, to be freed by the caller; clears the kernel's log. */
uint64_t *kc_slot_dirty_log(struct kc_slot *slot, size_t *pages, struct kc_error *err);
struct kc_slot *kc_slot_get(struct kc_slot *slot);
void kc_slot_put(struct kc_slot *slot);
bool kc_slot_removed(struct kc_slot *slot);

/* A snapshot of the slots in the order of their addresses, each with a reference; freed by the caller. */
struct kc_slot **kc_memory_slots(struct kc_vm *vm, size_t *count, struct kc_error *err);
/* All of it or nothing: KC_ERR_UNMAPPED with the first address that has no memory. */
int kc_memory_read(struct kc_vm *vm, uint64_t address, void *data, size_t size,
		   struct kc_error *err);
int kc_memory_write(struct kc_vm *vm, uint64_t address, const void *data, size_t size,
		    struct kc_error *err);
/* When the VM goes: takes all slots off without asking the kernel. */
void kc_memory_destroy(struct kc_vm *vm);

size_t kc_page_size(void);

#endif
