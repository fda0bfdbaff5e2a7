// SPDX-License-Identifier: MIT
#include "vm.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "arch/arch.h"
#include "cleanup.h"
#include "vcpu.h"

struct kc_vm *kc_vm_create(struct kc_kvm *kvm, unsigned long type, uint64_t tick_frequency,
			   struct kc_trace *trace, struct kc_error *err)
{
	kc_auto_free struct kc_vm *vm = calloc(1, sizeof(*vm));
	kc_auto_close int fd = -1;
	int kvm_fd = kc_kvm_fd(kvm, err), slots;

	if (kvm_fd < 0)
		return NULL;
	if (!vm) {
		kc_fail(err, KC_ERR_MEMORY, "out of memory");
		return NULL;
	}
	type = kc_arch_vm_type(kvm_fd, type);
	do {
		fd = ioctl(kvm_fd, KVM_CREATE_VM, type);
	} while (fd < 0 && errno == EINTR);
	if (fd < 0) {
		kc_fail_os(err, "KVM_CREATE_VM");
		return NULL;
	}
	slots = ioctl(fd, KVM_CHECK_EXTENSION, KVM_CAP_NR_MEMSLOTS);
	vm->max_slots = slots > 0 ? (uint32_t)slots : 32;
	vm->queue = kc_queue_create(tick_frequency, err);
	if (!vm->queue)
		return NULL;
	if (kc_kvm_enter(kvm, err) < 0) {
		kc_queue_put(vm->queue);
		return NULL;
	}
	atomic_init(&vm->refs, 1);
	vm->kvm = kc_kvm_get(kvm);
	vm->fd = fd;
	fd = -1;
	vm->fork_generation = kc_fork_generation();
	vm->tick_frequency = tick_frequency;
	vm->trace = trace;
	atomic_init(&vm->inst_budget, KC_NEVER);
	kc_lock_init(&vm->device_lock);
	pthread_rwlock_init(&vm->memory_lock, NULL);
	pthread_mutex_init(&vm->lock, NULL);
	pthread_cond_init(&vm->changed, NULL);
	return kc_move(vm);
}

struct kc_vm *kc_vm_get(struct kc_vm *vm)
{
	atomic_fetch_add_explicit(&vm->refs, 1, memory_order_relaxed);
	return vm;
}

void kc_vm_put(struct kc_vm *vm)
{
	if (!vm || atomic_fetch_sub_explicit(&vm->refs, 1, memory_order_acq_rel) != 1)
		return;
	kc_vm_close(vm);
	free(vm->vcpus);
	kc_queue_put(vm->queue);
	kc_kvm_put(vm->kvm);
	pthread_rwlock_destroy(&vm->memory_lock);
	pthread_mutex_destroy(&vm->lock);
	pthread_cond_destroy(&vm->changed);
	free(vm);
}

int kc_vm_check(struct kc_vm *vm, struct kc_error *err)
{
	if (atomic_load(&vm->closed))
		return kc_fail(err, KC_ERR_CLOSED, "the VM was closed");
	return kc_check_fork(vm->fork_generation, err);
}

/* The VM's fd cannot be closed between begin_use and end_use. */
static int begin_use(struct kc_vm *vm, struct kc_error *err)
{
	kc_hold(&vm->lock);

	if (kc_vm_check(vm, err))
		return -1;
	vm->users++;
	return 0;
}

static void end_use(struct kc_vm *vm)
{
	kc_hold(&vm->lock);

	if (!--vm->users)
		pthread_cond_broadcast(&vm->changed);
}

int kc_vm_ioctl(struct kc_vm *vm, unsigned long request, const char *name, void *arg,
		struct kc_error *err)
{
	int result;

	if (begin_use(vm, err))
		return -1;
	do {
		result = ioctl(vm->fd, request, arg);
	} while (result < 0 && errno == EINTR);
	if (result < 0)
		kc_fail_os(err, name);
	end_use(vm);
	return result;
}

struct kc_vcpu **kc_vm_vcpus(struct kc_vm *vm, size_t *count, struct kc_error *err)
{
	struct kc_vcpu **vcpus;

	if (kc_check_fork(vm->fork_generation, err))
		return NULL;
	kc_hold(&vm->lock);
	vcpus = calloc(vm->vcpu_count + 1, sizeof(*vcpus));
	if (!vcpus) {
		kc_fail(err, KC_ERR_MEMORY, "out of memory");
		return NULL;
	}
	*count = vm->vcpu_count;
	for (size_t i = 0; i < vm->vcpu_count; i++)
		vcpus[i] = kc_vcpu_get(vm->vcpus[i]);
	return vcpus;
}

void kc_vm_stop(struct kc_vm *vm)
{
	if (vm->fork_generation != kc_fork_generation())
		return;
	kc_hold(&vm->lock);

	for (size_t i = 0; i < vm->vcpu_count; i++)
		kc_vcpu_stop(vm->vcpus[i]);
}

int kc_vm_schedule_inst_stop(struct kc_vm *vm, uint64_t insts, struct kc_error *err)
{
	if (kc_vm_check(vm, err))
		return -1;
	if (!insts || insts == KC_NEVER)
		return kc_fail(err, KC_ERR_VALUE,
			       "an instruction stop is at least 1 instruction away");
	kc_hold(&vm->lock);
	vm->inst_stop_number++;
	atomic_store(&vm->inst_budget, insts);
	/* Those that are in the guest without a bound come out and see it. */
	for (size_t i = 0; i < vm->vcpu_count; i++)
		kc_kick(vm->vcpus[i]);
	return 0;
}

void kc_vm_changed(struct kc_vm *vm)
{
	kc_hold(&vm->lock);
	pthread_cond_broadcast(&vm->changed);
}

/* Close it as soon as nobody works with it; if this thread does, its release will. Needs the VM's lock. */
static void close_vcpu(struct kc_vm *vm, struct kc_vcpu *vcpu)
{
	void *nobody = NULL;

	while (!atomic_compare_exchange_strong(&vcpu->owner, &nobody, kc_thread())) {
		if (nobody == kc_thread())
			return;
		pthread_cond_wait(&vm->changed, &vm->lock);
		nobody = NULL;
	}
	kc_vcpu_close(vcpu);
	atomic_store(&vcpu->owner, NULL);
}

/* The first vCPU from this id on, with a reference: without one it could go while it is waited for. */
static struct kc_vcpu *vcpu_from(struct kc_vm *vm, uint64_t id)
{
	kc_hold(&vm->lock);

	for (size_t i = 0; i < vm->vcpu_count; i++)
		if (vm->vcpus[i]->id >= id)
			return kc_vcpu_get(vm->vcpus[i]);
	return NULL;
}

static void close_vcpus(struct kc_vm *vm)
{
	struct kc_vcpu *vcpu;

	/* While one is waited for the others may come and go: their ids keep the place. */
	for (uint64_t id = 0; (vcpu = vcpu_from(vm, id));
	     id = (uint64_t)vcpu->id + 1, kc_vcpu_put(vcpu)) {
		kc_hold(&vm->lock);

		close_vcpu(vm, vcpu);
	}
	kc_hold(&vm->lock);
	while (vm->users)
		pthread_cond_wait(&vm->changed, &vm->lock);
}

/* What the kernel and the devices hold. Needs the device lock. */
static void give_back(struct kc_vm *vm)
{
	kc_bus_destroy(&vm->bus[KC_IO]);
	kc_bus_destroy(&vm->bus[KC_MMIO]);
	close(vm->fd);
	vm->fd = -1;
	kc_kvm_leave(vm->kvm);
}

void kc_vm_close(struct kc_vm *vm)
{
	unsigned int depth = 0;

	if (atomic_exchange(&vm->closed, 1))
		return;
	/* In a child of a fork these are the parent's threads and locks: only let go of the fds. */
	if (vm->fork_generation != kc_fork_generation()) {
		give_back(vm);
		kc_memory_destroy(vm);
		return;
	}
	/* A new run is refused from now on; whoever is inside leaves soon, and may need the devices for it. */
	kc_vm_stop(vm);
	if (kc_lock_is_mine(&vm->device_lock))
		depth = kc_lock_drop(&vm->device_lock);
	close_vcpus(vm);
	kc_queue_clear(vm->queue);
	kc_lock_take(&vm->device_lock);
	give_back(vm);
	kc_lock_release(&vm->device_lock);
	kc_memory_destroy(vm);
	if (depth)
		kc_lock_retake(&vm->device_lock, depth);
}
