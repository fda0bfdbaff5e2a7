/* SPDX-License-Identifier: MIT */
/*
 * An architecture without a vCPU yet: no register files, and so kc_vcpu_create() makes none. What the rest of the
 * core would ask of one is here to be linked; nobody calls it. Included by the architecture's one file.
 */
#ifndef KC_ARCH_NO_VCPU_H
#define KC_ARCH_NO_VCPU_H

#include "arch.h"

/* C has no empty tables: their counts are 0 all the same. */
const struct kc_file kc_arch_files[1];
const unsigned int kc_arch_file_count = 0, kc_arch_regs = 0;
const struct kc_register_file kc_arch_register_files[1];
const unsigned int kc_arch_register_file_count = 0;
const struct kc_msr_name kc_arch_msr_names[1];
const unsigned int kc_arch_msr_name_count = 0;

static int no_vcpu(struct kc_error *err)
{
	return kc_fail(err, KC_ERR_UNSUPPORTED, "kvmcpu has no vCPU of %s yet", kc_arch_name);
}

int kc_arch_vcpu_start(struct kc_vcpu *vcpu, struct kc_error *err)
{
	return no_vcpu(err);
}

uint64_t kc_arch_pc(struct kc_vcpu *vcpu)
{
	return 0;
}

int kc_arch_deliver_interrupts(struct kc_vcpu *vcpu, struct kc_error *err)
{
	return no_vcpu(err);
}

bool kc_arch_takes_interrupts(struct kc_vcpu *vcpu)
{
	return false;
}

int kc_arch_has_pending_event(struct kc_vcpu *vcpu, struct kc_error *err)
{
	return no_vcpu(err);
}

bool kc_arch_loses_step(void)
{
	return false;
}

bool kc_arch_is_single_step(struct kc_vcpu *vcpu)
{
	return false;
}

bool kc_arch_lost_halt(struct kc_vcpu *vcpu, uint64_t from)
{
	return false;
}

bool kc_arch_halt_at(struct kc_vcpu *vcpu, uint64_t pc)
{
	return false;
}

bool kc_arch_at_repeat(struct kc_vcpu *vcpu)
{
	return false;
}

size_t kc_arch_split_offset(struct kc_vcpu *vcpu)
{
	return 0;
}

void kc_arch_field_written(unsigned int file, void *data, const struct kc_field *field)
{
}

int kc_arch_get_msr(struct kc_vcpu *vcpu, uint32_t index, uint64_t *value, struct kc_error *err)
{
	return no_vcpu(err);
}

int kc_arch_set_msr(struct kc_vcpu *vcpu, uint32_t index, uint64_t value, struct kc_error *err)
{
	return no_vcpu(err);
}

uint32_t *kc_arch_msr_list(struct kc_vm *vm, size_t *count, struct kc_error *err)
{
	no_vcpu(err);
	return NULL;
}

struct kc_cpuid_entry *kc_arch_get_cpuid(struct kc_vcpu *vcpu, size_t *count, struct kc_error *err)
{
	no_vcpu(err);
	return NULL;
}

int kc_arch_set_cpuid(struct kc_vcpu *vcpu, const struct kc_cpuid_entry *entries, size_t count,
		      struct kc_error *err)
{
	return no_vcpu(err);
}

bool kc_arch_cpuid_same(const struct kc_cpuid_entry *a, size_t a_count,
			const struct kc_cpuid_entry *b, size_t b_count)
{
	return true;
}

int kc_arch_translate(struct kc_vcpu *vcpu, uint64_t address, uint64_t *physical,
		      struct kc_error *err)
{
	return no_vcpu(err);
}

#endif
