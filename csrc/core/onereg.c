// SPDX-License-Identifier: MIT
#include "onereg.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "arch/arch.h"
#include "cleanup.h"
#include "compat.h"
#include "vcpu.h"
#include "vm.h"

size_t kc_one_reg_size(uint64_t id)
{
	unsigned int power = (id & KVM_REG_SIZE_MASK) >> KVM_REG_SIZE_SHIFT;

	return power <= 8 ? (size_t)1 << power : 0;
}

/* x86 before Linux 6.18 answers EINVAL to a request that it does not know. */
static bool has_one_reg(struct kc_vcpu *vcpu)
{
	struct kc_error ignored;

	return kc_vm_ioctl(vcpu->vm, KVM_CHECK_EXTENSION, "KVM_CHECK_EXTENSION",
			   (void *)(uintptr_t)KVM_CAP_ONE_REG, &ignored) > 0;
}

static int transfer(struct kc_vcpu *vcpu, unsigned long request, const char *name, uint64_t id,
		    void *value, struct kc_error *err)
{
	struct kvm_one_reg reg = { .id = id, .addr = (uintptr_t)value };
	char what[64];
	int error;

	if (!kc_one_reg_size(id))
		return kc_fail(err, KC_ERR_VALUE,
			       "0x%" PRIx64
			       " is not a register's id: its bits 52 to 55 say no known size",
			       id);
	if (!ioctl(vcpu->fd, request, &reg))
		return 0;
	error = errno;
	if (error == ENOTTY || (error == EINVAL && !has_one_reg(vcpu)))
		return kc_fail(
			err, KC_ERR_UNSUPPORTED,
			"this kernel lacks %s (KVM_CAP_ONE_REG; on x86 it came with Linux 6.18)",
			name);
	errno = error;
	snprintf(what, sizeof(what), "%s 0x%" PRIx64, name, id);
	return kc_fail_os(err, what);
}

int kc_one_reg_get(struct kc_vcpu *vcpu, uint64_t id, void *value, struct kc_error *err)
{
	/* What we have written and not yet pushed may be the same register. */
	if (kc_context_flush(vcpu, err))
		return -1;
	return transfer(vcpu, KVM_GET_ONE_REG, "KVM_GET_ONE_REG", id, value, err);
}

int kc_one_reg_set(struct kc_vcpu *vcpu, uint64_t id, const void *value, struct kc_error *err)
{
	if (kc_context_flush(vcpu, err))
		return -1;
	if (transfer(vcpu, KVM_SET_ONE_REG, "KVM_SET_ONE_REG", id, (void *)value, err))
		return -1;
	kc_context_invalidate(vcpu);
	return 0;
}

/* What the kernel itself lists; an empty list where it has no such call. */
static int kernel_list(struct kc_vcpu *vcpu, uint64_t **ids, size_t *count, struct kc_error *err)
{
	struct kvm_reg_list none = { .n = 0 };
	kc_auto_free struct kvm_reg_list *list = NULL;
	uint64_t n;

	*ids = NULL;
	*count = 0;
	if (!ioctl(vcpu->fd, KVM_GET_REG_LIST, &none))
		return 0;
	if (errno != E2BIG)
		return errno == EINVAL || errno == ENOTTY ? 0 : kc_fail_os(err, "KVM_GET_REG_LIST");
	n = none.n;
	if (n > SIZE_MAX / sizeof(uint64_t) - 1)
		return kc_fail(err, KC_ERR_OS, "KVM_GET_REG_LIST: an absurd count");
	list = malloc(sizeof(*list) + (size_t)n * sizeof(uint64_t));
	*ids = malloc((size_t)n * sizeof(uint64_t) + 1);
	if (!list || !*ids)
		return kc_fail(err, KC_ERR_MEMORY, "out of memory");
	list->n = n;
	if (ioctl(vcpu->fd, KVM_GET_REG_LIST, list))
		return kc_fail_os(err, "KVM_GET_REG_LIST");
	*count = list->n < n ? (size_t)list->n : (size_t)n;
	memcpy(*ids, list->reg, *count * sizeof(uint64_t));
	return 0;
}

uint64_t *kc_one_reg_list(struct kc_vcpu *vcpu, size_t *count, struct kc_error *err)
{
	kc_auto_free uint64_t *ids = NULL;

	if (kernel_list(vcpu, &ids, count, err))
		return NULL;
#if defined(__x86_64__)
	/* The kernel reaches the MSRs this way, but lists them only as MSRs. */
	kc_auto_free uint32_t *msrs = NULL;
	size_t msr_count;
	uint64_t *more;

	if (has_one_reg(vcpu)) {
		msrs = kc_arch_msr_list(vcpu->vm, &msr_count, err);
		if (!msrs)
			return NULL;
		more = realloc(ids, (*count + msr_count) * sizeof(*ids) + 1);
		if (!more) {
			kc_fail(err, KC_ERR_MEMORY, "out of memory");
			return NULL;
		}
		ids = more;
		for (size_t i = 0; i < msr_count; i++)
			ids[(*count)++] = KC_X86_REG_MSR(msrs[i]);
	}
#endif
	if (!ids && !*count) {
		kc_fail(err, KC_ERR_UNSUPPORTED,
			"this kernel lacks KVM_GET_REG_LIST (on x86 the one-register interface came "
			"with Linux 6.18)");
		return NULL;
	}
	return kc_move(ids);
}

void kc_one_reg_format(uint64_t id, const void *value, char *text, size_t size)
{
	size_t bytes = kc_one_reg_size(id), at;
	const uint8_t *byte = value;
	uint64_t number = 0;

	if (!bytes) {
		snprintf(text, size, "??");
		return;
	}
	if (bytes <= 8) {
		memcpy(&number, value, bytes);
		snprintf(text, size, "0x%" PRIx64, number);
		return;
	}
	at = (size_t)snprintf(text, size, "[");
	for (size_t i = 0; i < bytes && at < size; i++)
		at += (size_t)snprintf(text + at, size - at, i ? ", 0x%02x" : "0x%02x", byte[i]);
	if (at < size)
		snprintf(text + at, size - at, "]");
}
