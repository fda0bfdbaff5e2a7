// SPDX-License-Identifier: MIT
#include "memory.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cleanup.h"
#include "vm.h"

size_t kc_page_size(void)
{
	return (size_t)sysconf(_SC_PAGESIZE);
}

/* ---- mappings ---- */

static int check_size(size_t size, struct kc_error *err)
{
	if (!size)
		return kc_fail(err, KC_ERR_VALUE, "memory of size 0: give it at least a page");
	if (size % kc_page_size())
		return kc_fail(err, KC_ERR_VALUE,
			       "the size %#zx is not a multiple of the page size, %#zx", size,
			       kc_page_size());
	if (size > PTRDIFF_MAX)
		return kc_fail(err, KC_ERR_VALUE, "the size %#zx is more than a process can map",
			       size);
	return 0;
}

static struct kc_mapping *new_mapping(enum kc_backing backing, void *host, size_t size,
				      struct kc_error *err)
{
	struct kc_mapping *mapping = calloc(1, sizeof(*mapping));

	if (!mapping) {
		kc_fail(err, KC_ERR_MEMORY, "out of memory");
		return NULL;
	}
	atomic_init(&mapping->refs, 1);
	mapping->backing = backing;
	mapping->host = host;
	mapping->size = size;
	return mapping;
}

static struct kc_mapping *map(enum kc_backing backing, size_t size, int flags, int fd,
			      uint64_t offset, struct kc_error *err)
{
	struct kc_mapping *mapping;
	void *host;

	host = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, fd, (off_t)offset);
	if (host == MAP_FAILED) {
		int error = errno;

		kc_fail(err, error == ENOMEM ? KC_ERR_MEMORY : KC_ERR_OS,
			"mmap of %#zx bytes of guest memory: %s", size, strerror(error));
		err->os_errno = error;
		return NULL;
	}
	mapping = new_mapping(backing, host, size, err);
	if (!mapping)
		munmap(host, size);
	return mapping;
}

struct kc_mapping *kc_mapping_anonymous(size_t size, struct kc_error *err)
{
	if (check_size(size, err))
		return NULL;
	return map(KC_ANONYMOUS, size, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0, err);
}

struct kc_mapping *kc_mapping_file(int fd, uint64_t offset, size_t size, struct kc_error *err)
{
	struct stat st;

	if (check_size(size, err))
		return NULL;
	if (offset % kc_page_size() || offset > INT64_MAX - size) {
		kc_fail(err, KC_ERR_VALUE,
			"the offset %#" PRIx64 " is not a multiple of the page "
			"size, or is too large",
			offset);
		return NULL;
	}
	if (fstat(fd, &st)) {
		kc_fail_os(err, "fstat of the memory's file");
		return NULL;
	}
	/* A guest that touches pages beyond the end of the file would kill the process. */
	if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size < offset + size) {
		kc_fail(err, KC_ERR_VALUE,
			"the file is not a regular one that holds %#zx bytes from offset %#" PRIx64
			" on (it has %#" PRIx64 "): enlarge it first (os.ftruncate)",
			size, offset, (uint64_t)st.st_size);
		return NULL;
	}
	return map(KC_FILE, size, MAP_SHARED, fd, offset, err);
}

struct kc_mapping *kc_mapping_buffer(void *host, size_t size, void (*release)(void *owner),
				     void *owner, struct kc_error *err)
{
	struct kc_mapping *mapping;

	if (check_size(size, err))
		return NULL;
	if ((uintptr_t)host % kc_page_size()) {
		kc_fail(err, KC_ERR_VALUE,
			"the buffer does not start at a page boundary: use an mmap.mmap, or an "
			"array aligned to %zu bytes",
			kc_page_size());
		return NULL;
	}
	mapping = new_mapping(KC_BUFFER, host, size, err);
	if (mapping) {
		mapping->release = release;
		mapping->owner = owner;
	}
	return mapping;
}

struct kc_mapping *kc_mapping_get(struct kc_mapping *mapping)
{
	atomic_fetch_add_explicit(&mapping->refs, 1, memory_order_relaxed);
	return mapping;
}

void kc_mapping_put(struct kc_mapping *mapping)
{
	if (!mapping || atomic_fetch_sub_explicit(&mapping->refs, 1, memory_order_acq_rel) != 1)
		return;
	if (mapping->backing != KC_BUFFER)
		munmap(mapping->host, mapping->size);
	else if (mapping->release)
		mapping->release(mapping->owner);
	free(mapping);
}

/* ---- slots ---- */

static int set_region(struct kc_vm *vm, const struct kc_slot *slot, bool log_dirty, bool remove,
		      struct kc_error *err)
{
	struct kvm_userspace_memory_region region = {
		.slot = slot->id,
		.flags = (log_dirty ? KVM_MEM_LOG_DIRTY_PAGES : 0) |
			 (slot->readonly ? KVM_MEM_READONLY : 0),
		.guest_phys_addr = slot->address,
		.memory_size = remove ? 0 : slot->mapping->size,
		.userspace_addr = (uintptr_t)slot->mapping->host,
	};

	return kc_vm_ioctl(vm, KVM_SET_USER_MEMORY_REGION, "KVM_SET_USER_MEMORY_REGION", &region,
			   err);
}

static uint64_t last_address(const struct kc_slot *slot)
{
	return slot->address + (slot->mapping->size - 1);
}

/* The index of the first slot that ends at or after the address. Needs the memory lock. */
static size_t find_slot(struct kc_vm *vm, uint64_t address)
{
	size_t low = 0, high = vm->slot_count;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (last_address(vm->slots[middle]) < address)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

/* The lowest id that no slot has: ids of removed slots come back. Needs the memory lock. */
static uint32_t free_id(struct kc_vm *vm)
{
	for (uint32_t id = 0;; id++) {
		bool used = false;

		if (id >= vm->next_slot)
			return id;
		for (size_t i = 0; i < vm->slot_count && !used; i++)
			used = vm->slots[i]->id == id;
		if (!used)
			return id;
	}
}

static int insert_slot(struct kc_vm *vm, struct kc_slot *slot, struct kc_error *err)
{
	size_t at = find_slot(vm, slot->address);
	struct kc_slot **grown;

	if (at < vm->slot_count && vm->slots[at]->address <= last_address(slot))
		return kc_fail(err, KC_ERR_VALUE,
			       "memory at %#" PRIx64 "-%#" PRIx64
			       " overlaps the memory at %#" PRIx64 "-%#" PRIx64,
			       slot->address, last_address(slot), vm->slots[at]->address,
			       last_address(vm->slots[at]));
	if (vm->slot_count >= vm->max_slots)
		return kc_fail(err, KC_ERR_VALUE, "the kernel allows %u memory slots a VM",
			       vm->max_slots);
	grown = reallocarray(vm->slots, vm->slot_count + 1, sizeof(*grown));
	if (!grown)
		return kc_fail(err, KC_ERR_MEMORY, "out of memory");
	vm->slots = grown;
	slot->id = free_id(vm);
	if (set_region(vm, slot, slot->log_dirty, false, err))
		return -1;
	if (slot->id >= vm->next_slot)
		vm->next_slot = slot->id + 1;
	memmove(&vm->slots[at + 1], &vm->slots[at], (vm->slot_count - at) * sizeof(*vm->slots));
	vm->slots[at] = slot;
	vm->slot_count++;
	return 0;
}

struct kc_slot *kc_slot_add(struct kc_vm *vm, uint64_t address, struct kc_mapping *mapping,
			    bool readonly, bool log_dirty, struct kc_error *err)
{
	struct kc_slot *slot;
	int failed;

	if (address % kc_page_size()) {
		kc_fail(err, KC_ERR_VALUE,
			"the address %#" PRIx64 " is not a multiple of the page size, %#zx",
			address, kc_page_size());
		return NULL;
	}
	if (mapping->size - 1 > UINT64_MAX - address) {
		kc_fail(err, KC_ERR_VALUE,
			"%#zx bytes at %#" PRIx64 " reach beyond the end of the address space",
			mapping->size, address);
		return NULL;
	}
	if (kc_vm_check(vm, err))
		return NULL;
	slot = calloc(1, sizeof(*slot));
	if (!slot) {
		kc_fail(err, KC_ERR_MEMORY, "out of memory");
		return NULL;
	}
	atomic_init(&slot->refs, 2); /* the VM's and the caller's */
	atomic_init(&slot->vm, vm);
	slot->mapping = kc_mapping_get(mapping);
	slot->address = address;
	slot->readonly = readonly;
	slot->log_dirty = log_dirty;
	pthread_rwlock_wrlock(&vm->memory_lock);
	failed = insert_slot(vm, slot, err);
	pthread_rwlock_unlock(&vm->memory_lock);
	if (failed) {
		kc_mapping_put(slot->mapping);
		free(slot);
		return NULL;
	}
	return slot;
}

struct kc_slot *kc_slot_get(struct kc_slot *slot)
{
	atomic_fetch_add_explicit(&slot->refs, 1, memory_order_relaxed);
	return slot;
}

void kc_slot_put(struct kc_slot *slot)
{
	if (!slot || atomic_fetch_sub_explicit(&slot->refs, 1, memory_order_acq_rel) != 1)
		return;
	kc_mapping_put(slot->mapping);
	free(slot);
}

bool kc_slot_removed(struct kc_slot *slot)
{
	return !atomic_load(&slot->vm);
}

static void forget_slot(struct kc_vm *vm, struct kc_slot *slot)
{
	for (size_t i = 0; i < vm->slot_count; i++) {
		if (vm->slots[i] != slot)
			continue;
		vm->slot_count--;
		memmove(&vm->slots[i], &vm->slots[i + 1],
			(vm->slot_count - i) * sizeof(*vm->slots));
		atomic_store(&slot->vm, NULL);
		return;
	}
}

int kc_slot_remove(struct kc_slot *slot, struct kc_error *err)
{
	struct kc_vm *vm = atomic_load(&slot->vm);
	bool mine = false;
	int failed = 0;

	if (!vm)
		return 0;
	if (kc_check_fork(vm->fork_generation, err))
		return -1;
	pthread_rwlock_wrlock(&vm->memory_lock);
	if (atomic_load(&slot->vm)) {
		failed = set_region(vm, slot, false, true, err);
		if (!failed) {
			forget_slot(vm, slot);
			mine = true;
		}
	}
	pthread_rwlock_unlock(&vm->memory_lock);
	if (mine)
		kc_slot_put(slot);
	return failed;
}

static int removed(struct kc_error *err)
{
	return kc_fail(err, KC_ERR_CLOSED, "the memory was removed from its VM");
}

int kc_slot_set_log_dirty(struct kc_slot *slot, bool on, struct kc_error *err)
{
	struct kc_vm *vm = atomic_load(&slot->vm);
	int failed = 0;

	if (!vm)
		return removed(err);
	if (kc_check_fork(vm->fork_generation, err))
		return -1;
	pthread_rwlock_wrlock(&vm->memory_lock);
	/* Again, under the lock: for the kernel, changing what was removed is adding it. */
	if (!atomic_load(&slot->vm))
		failed = removed(err);
	else if (slot->log_dirty != on)
		failed = set_region(vm, slot, on, false, err);
	if (!failed)
		slot->log_dirty = on;
	pthread_rwlock_unlock(&vm->memory_lock);
	return failed;
}

uint64_t *kc_slot_dirty_log(struct kc_slot *slot, size_t *pages, struct kc_error *err)
{
	struct kc_vm *vm = atomic_load(&slot->vm);
	kc_auto_free uint64_t *bitmap = NULL;
	struct kvm_dirty_log log = { .slot = slot->id };
	int failed;

	if (!vm) {
		removed(err);
		return NULL;
	}
	if (kc_check_fork(vm->fork_generation, err))
		return NULL;
	*pages = slot->mapping->size / kc_page_size();
	bitmap = calloc((*pages + 63) / 64, sizeof(*bitmap));
	if (!bitmap) {
		kc_fail(err, KC_ERR_MEMORY, "out of memory");
		return NULL;
	}
	log.dirty_bitmap = bitmap;
	pthread_rwlock_rdlock(&vm->memory_lock);
	if (!atomic_load(&slot->vm))
		failed = removed(err);
	else if (!slot->log_dirty)
		failed = kc_fail(err, KC_ERR_STATE,
				 "dirty logging is off for this memory: set log_dirty first");
	else
		failed = kc_vm_ioctl(vm, KVM_GET_DIRTY_LOG, "KVM_GET_DIRTY_LOG", &log, err);
	pthread_rwlock_unlock(&vm->memory_lock);
	return failed ? NULL : kc_move(bitmap);
}

/* ---- the VM's memory ---- */

struct kc_slot **kc_memory_slots(struct kc_vm *vm, size_t *count, struct kc_error *err)
{
	struct kc_slot **slots;

	if (kc_check_fork(vm->fork_generation, err))
		return NULL;
	pthread_rwlock_rdlock(&vm->memory_lock);
	slots = calloc(vm->slot_count + 1, sizeof(*slots));
	if (slots) {
		*count = vm->slot_count;
		for (size_t i = 0; i < vm->slot_count; i++)
			slots[i] = kc_slot_get(vm->slots[i]);
	} else {
		kc_fail(err, KC_ERR_MEMORY, "out of memory");
	}
	pthread_rwlock_unlock(&vm->memory_lock);
	return slots;
}

/* Walk the pieces of [address, address + size); copy each unless data is NULL. Needs the memory lock. */
static int walk(struct kc_vm *vm, uint64_t address, uint8_t *data, size_t size, bool write,
		struct kc_error *err)
{
	size_t at = find_slot(vm, address);

	while (size) {
		struct kc_slot *slot = at < vm->slot_count ? vm->slots[at] : NULL;
		uint64_t offset, piece;

		if (!slot || slot->address > address) {
			kc_fail(err, KC_ERR_UNMAPPED,
				"no guest memory at physical address %#" PRIx64, address);
			err->address = address;
			return -1;
		}
		offset = address - slot->address;
		piece = slot->mapping->size - offset;
		if (piece > size)
			piece = size;
		if (data && write)
			memcpy(slot->mapping->host + offset, data, piece);
		else if (data)
			memcpy(data, slot->mapping->host + offset, piece);
		if (data)
			data += piece;
		size -= piece;
		address += piece; /* wraps to 0 only with size 0, or an address that is unmapped */
		at++;
	}
	return 0;
}

static int copy(struct kc_vm *vm, uint64_t address, void *data, size_t size, bool write,
		struct kc_error *err)
{
	int failed;

	if (kc_vm_check(vm, err))
		return -1;
	pthread_rwlock_rdlock(&vm->memory_lock);
	failed = walk(vm, address, NULL, size, write, err) ||
		 walk(vm, address, data, size, write, err);
	pthread_rwlock_unlock(&vm->memory_lock);
	return failed ? -1 : 0;
}

int kc_memory_read(struct kc_vm *vm, uint64_t address, void *data, size_t size,
		   struct kc_error *err)
{
	return copy(vm, address, data, size, false, err);
}

int kc_memory_write(struct kc_vm *vm, uint64_t address, const void *data, size_t size,
		    struct kc_error *err)
{
	return copy(vm, address, (void *)data, size, true, err);
}

void kc_memory_destroy(struct kc_vm *vm)
{
	/* In the child of a fork a thread that is not there may hold the lock. */
	bool ours = vm->fork_generation == kc_fork_generation();
	struct kc_slot **slots;
	size_t count;

	if (ours)
		pthread_rwlock_wrlock(&vm->memory_lock);
	slots = vm->slots;
	count = vm->slot_count;
	for (size_t i = 0; i < count; i++)
		atomic_store(&slots[i]->vm, NULL);
	vm->slots = NULL;
	vm->slot_count = 0;
	if (ours)
		pthread_rwlock_unlock(&vm->memory_lock);
	/* Without the lock: giving a buffer back runs its owner's code. */
	for (size_t i = 0; i < count; i++)
		kc_slot_put(slots[i]);
	free(slots);
}
