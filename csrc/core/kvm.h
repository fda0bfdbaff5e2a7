/* SPDX-License-Identifier: MIT */
/* The host's KVM device: the first of the four objects. */
#ifndef KC_KVM_H
#define KC_KVM_H

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>

#include "compat.h"
#include "errors.h"

struct kc_kvm {
	atomic_int refs;
	_Atomic int fd; /* -1 once closed, and no VM needs it any more */
	atomic_bool closed; /* by its user */
	unsigned int fork_generation;
	size_t vcpu_mmap_size;
	pthread_mutex_t lock; /* guards what follows */
	unsigned int vms; /* that are not closed and may still ask the device */
	void *supported_cpuid; /* struct kvm_cpuid2 of x86, asked for once */
	char path[256];
};

/* How often this process is a fork's child: an object made with another number belongs to an ancestor. */
extern atomic_uint kc_forks;
static inline unsigned int kc_fork_generation(void)
{
	return atomic_load_explicit(&kc_forks, memory_order_relaxed);
}

int kc_fail_forked(struct kc_error *err);
static inline int kc_check_fork(unsigned int generation, struct kc_error *err)
{
	return __builtin_expect(generation == kc_fork_generation(), 1) ? 0 : kc_fail_forked(err);
}

int kc_kvm_open(const char *path, struct kc_kvm **out, struct kc_error *err);
struct kc_kvm *kc_kvm_get(struct kc_kvm *kvm);
void kc_kvm_put(struct kc_kvm *kvm);
/* Close the device, for its user; the file descriptor stays open for as long as a VM may ask it. */
void kc_kvm_close(struct kc_kvm *kvm);
/* The file descriptor, or -1 and an error if it was closed or forked away. */
int kc_kvm_fd(struct kc_kvm *kvm, struct kc_error *err);
/* For VMs: between enter and leave they have the device, closed or not. */
int kc_kvm_enter(struct kc_kvm *kvm, struct kc_error *err);
void kc_kvm_leave(struct kc_kvm *kvm);
int kc_kvm_device(struct kc_kvm *kvm, struct kc_error *err);
/* KVM_CHECK_EXTENSION: >= 0, or -1 and an error. */
int kc_kvm_check_extension(struct kc_kvm *kvm, unsigned long cap, struct kc_error *err);

#endif
