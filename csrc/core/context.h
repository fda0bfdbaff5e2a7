/* SPDX-License-Identifier: MIT */
/*
 * The context (V12): our copy of the vCPU's registers beside KVM's. It is kept by register file; a file that
 * KVM has newer is stale, one that we have newer is dirty, and none is ever both.
 */
#ifndef KC_CONTEXT_H
#define KC_CONTEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "errors.h"

struct kc_vcpu;

/* How a register file is reached; the tables are in arch/. Their order is the order of pushing. */
struct kc_file {
	const char *name;
	unsigned long get, set; /* ioctls */
	size_t size; /* in bytes */
	unsigned long cap; /* without it the kernel lacks the file; 0: always there */
	unsigned long size_cap; /* its value, where larger, is the size; then get_large is used */
	unsigned long get_large;
	bool needs_irqchip;
	uint32_t sync; /* its bit in kvm_valid_regs and kvm_dirty_regs; 0: not synchronised */
	size_t sync_offset; /* where it is in the run structure */
};

#define KC_FILES_MAX 16

struct kc_context {
	uint32_t stale, dirty; /* bits by file; never both */
	uint32_t present; /* the kernel has the file */
	uint32_t synced; /* it comes with every exit */
	uint32_t looked_at; /* read since the exits below began to count */
	int exits_left; /* until what was not looked at stops coming */
	uint32_t sync_supported; /* KVM_CAP_SYNC_REGS */
	void *data[KC_FILES_MAX]; /* NULL until it is used; in the run structure for synchronised files */
	size_t size[KC_FILES_MAX];
};

int kc_context_start(struct kc_vcpu *vcpu, struct kc_error *err);
void kc_context_destroy(struct kc_vcpu *vcpu);
/* Our copy, brought up to date. NULL: an error. */
void *kc_context_read(struct kc_vcpu *vcpu, unsigned int file, struct kc_error *err);
/* The same, to be written to: it is dirty from now on. */
void *kc_context_write(struct kc_vcpu *vcpu, unsigned int file, struct kc_error *err);
/* Push what is dirty, by ioctls: before another ioctl that depends on it. */
int kc_context_flush(struct kc_vcpu *vcpu, struct kc_error *err);
/* Push what is dirty on the way into the guest: synchronised files ride along. */
int kc_context_push(struct kc_vcpu *vcpu, struct kc_error *err);
/* KVM changed some state behind our copy: all that is clean is stale. */
void kc_context_invalidate(struct kc_vcpu *vcpu);
/* After an entry: KVM has everything newer, but what came back with the exit. True: it is time to sync less. */
static inline bool kc_context_entered(struct kc_context *context)
{
	context->dirty = 0;
	context->stale = context->present & ~context->synced;
	return --context->exits_left <= 0;
}
/*
 * Files that come with an exit cost it some time: only those do that were read during the last
 * KC_CONTEXT_EXITS exits.
 */
#define KC_CONTEXT_EXITS 64
void kc_context_sync_less(struct kc_vcpu *vcpu);
/* KVM_RUN failed with EINVAL: which file the kernel refuses. Returns -1. */
int kc_context_refused(struct kc_vcpu *vcpu, struct kc_error *err);
/* Bring all of our copy up to date (V19). */
int kc_context_pull(struct kc_vcpu *vcpu, struct kc_error *err);

#endif
