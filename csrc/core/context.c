// SPDX-License-Identifier: MIT
#include "context.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "arch/arch.h"
#include "vcpu.h"
#include "vm.h"

#define BIT(n) (1u << (n))

static int file_fail(const char *call, const struct kc_file *file, struct kc_error *err)
{
	char what[80];

	snprintf(what, sizeof(what), "%s the vCPU's %s", call, file->name);
	return kc_fail_os(err, what);
}

static bool rides_along(const struct kc_vcpu *vcpu, unsigned int i)
{
	/*
	 * A vCPU that waits for its start-up interrupt leaves KVM_RUN without having taken them: with the
	 * kernel's interrupt controller there are such.
	 */
	return (vcpu->context.sync_supported & kc_arch_files[i].sync) && !vcpu->vm->irqchip;
}

static void *allocate(struct kc_vcpu *vcpu, unsigned int i, struct kc_error *err)
{
	struct kc_context *context = &vcpu->context;

	if (!context->data[i]) {
		context->data[i] = calloc(1, context->size[i]);
		if (!context->data[i])
			kc_fail(err, KC_ERR_MEMORY, "out of memory");
	}
	return context->data[i];
}

static int get(struct kc_vcpu *vcpu, unsigned int i, struct kc_error *err)
{
	const struct kc_file *file = &kc_arch_files[i];
	struct kc_context *context = &vcpu->context;
	bool large = context->size[i] > file->size;

	if (ioctl(vcpu->fd, large ? file->get_large : file->get, context->data[i]))
		return file_fail("reading", file, err);
	context->stale &= ~BIT(i);
	kc_trace(vcpu, KvmContext, "pulled %s", file->name);
	return 0;
}

/*
 * Writing the flags undoes single-stepping: it must be told anew, and so must that it is to be off (0 would
 * look as if it were).
 */
static void forget_debug(struct kc_vcpu *vcpu)
{
	if (vcpu->told_debug)
		vcpu->told_debug = UINT32_MAX;
}

static int set(struct kc_vcpu *vcpu, unsigned int i, struct kc_error *err)
{
	const struct kc_file *file = &kc_arch_files[i];

	if (ioctl(vcpu->fd, file->set, vcpu->context.data[i]))
		return file_fail("the kernel refuses", file, err);
	vcpu->context.dirty &= ~BIT(i);
	forget_debug(vcpu);
	kc_trace(vcpu, KvmContext, "pushed %s", file->name);
	return 0;
}

int kc_context_start(struct kc_vcpu *vcpu, struct kc_error *err)
{
	struct kc_context *context = &vcpu->context;
	int supported = kc_kvm_check_extension(vcpu->vm->kvm, KVM_CAP_SYNC_REGS, err);

	if (supported < 0)
		return -1;
	vcpu->context.sync_supported = (uint32_t)supported;
	for (unsigned int i = 0; i < kc_arch_file_count; i++) {
		const struct kc_file *file = &kc_arch_files[i];
		int value = 1;

		if (file->needs_irqchip && !vcpu->vm->irqchip)
			continue;
		if (file->cap)
			value = kc_kvm_check_extension(vcpu->vm->kvm, file->cap, err);
		if (value < 0)
			return -1;
		if (!value)
			continue;
		context->present |= BIT(i);
		context->size[i] = file->size;
		if (file->size_cap) {
			value = ioctl(vcpu->vm->fd, KVM_CHECK_EXTENSION, file->size_cap);
			if (value > 0 && (size_t)value > file->size)
				context->size[i] = (size_t)value;
		}
		if (vcpu->context.sync_supported & file->sync)
			context->data[i] = (uint8_t *)vcpu->run + file->sync_offset;
	}
	context->stale = context->present;
	context->dirty = 0;
	context->exits_left = KC_CONTEXT_EXITS;
	return 0;
}

static void sync_more(struct kc_vcpu *vcpu, unsigned int i)
{
	uint32_t sync = vcpu->context.sync_supported & kc_arch_files[i].sync;

	vcpu->context.looked_at |= BIT(i);
	vcpu->run->kvm_valid_regs |= sync;
	if (sync)
		vcpu->context.synced |= BIT(i);
}

void kc_context_sync_less(struct kc_vcpu *vcpu)
{
	struct kc_context *context = &vcpu->context;
	uint32_t looked_at = context->looked_at;

	vcpu->run->kvm_valid_regs = 0;
	context->synced = context->looked_at = 0;
	for (unsigned int i = 0; looked_at >> i; i++)
		if (looked_at & BIT(i))
			sync_more(vcpu, i);
	context->looked_at = 0;
	context->exits_left = KC_CONTEXT_EXITS;
}

void kc_context_destroy(struct kc_vcpu *vcpu)
{
	for (unsigned int i = 0; i < kc_arch_file_count; i++) {
		if (!(vcpu->context.sync_supported & kc_arch_files[i].sync))
			free(vcpu->context.data[i]);
		vcpu->context.data[i] = NULL;
	}
}

void *kc_context_read(struct kc_vcpu *vcpu, unsigned int i, struct kc_error *err)
{
	struct kc_context *context = &vcpu->context;

	if (!(context->present & BIT(i))) {
		kc_fail(err, KC_ERR_UNSUPPORTED, "this vCPU has no %s%s", kc_arch_files[i].name,
			kc_arch_files[i].needs_irqchip
				? ": the VM has no interrupt controller in the kernel"
				: ": the kernel lacks the interface");
		return NULL;
	}
	if (!allocate(vcpu, i, err))
		return NULL;
	if ((context->stale & BIT(i)) && get(vcpu, i, err))
		return NULL;
	if (!(context->looked_at & BIT(i)))
		sync_more(vcpu, i);
	return context->data[i];
}

void *kc_context_write(struct kc_vcpu *vcpu, unsigned int i, struct kc_error *err)
{
	void *data = kc_context_read(vcpu, i, err);

	if (data)
		vcpu->context.dirty |= BIT(i);
	return data;
}

int kc_context_flush(struct kc_vcpu *vcpu, struct kc_error *err)
{
	for (unsigned int i = 0; vcpu->context.dirty && i < kc_arch_file_count; i++)
		if ((vcpu->context.dirty & BIT(i)) && set(vcpu, i, err))
			return -1;
	return 0;
}

int kc_context_push(struct kc_vcpu *vcpu, struct kc_error *err)
{
	struct kc_context *context = &vcpu->context;

	if (__builtin_expect(!context->dirty, 1))
		return 0;
	for (unsigned int i = 0; i < kc_arch_file_count; i++) {
		if (!(context->dirty & BIT(i)))
			continue;
		if (!rides_along(vcpu, i)) {
			if (set(vcpu, i, err))
				return -1;
			continue;
		}
		vcpu->run->kvm_dirty_regs |= kc_arch_files[i].sync;
		/* Should the kernel refuse it, what comes back must not take the place of what was written. */
		if (i != kc_arch_regs) {
			vcpu->run->kvm_valid_regs &= ~kc_arch_files[i].sync;
			context->synced &= ~BIT(i);
			context->looked_at &= ~BIT(i);
		}
		forget_debug(vcpu);
	}
	return 0;
}

void kc_context_invalidate(struct kc_vcpu *vcpu)
{
	vcpu->context.stale |= vcpu->context.present & ~vcpu->context.dirty;
}

int kc_context_refused(struct kc_vcpu *vcpu, struct kc_error *err)
{
	/* The kernel clears the bit of what it took, and stops at the first that it refuses. */
	for (unsigned int i = 0; i < kc_arch_file_count; i++) {
		if (!(vcpu->run->kvm_dirty_regs & kc_arch_files[i].sync))
			continue;
		vcpu->run->kvm_dirty_regs = 0;
		kc_fail(err, KC_ERR_OS,
			"KVM_RUN: the kernel refuses the vCPU's %s: Invalid argument",
			kc_arch_files[i].name);
		err->os_errno = EINVAL;
		return -1;
	}
	errno = EINVAL;
	return kc_fail_os(err, "KVM_RUN");
}

int kc_context_pull(struct kc_vcpu *vcpu, struct kc_error *err)
{
	for (unsigned int i = 0; i < kc_arch_file_count; i++)
		if ((vcpu->context.present & BIT(i)) && !kc_context_read(vcpu, i, err))
			return -1;
	return 0;
}
