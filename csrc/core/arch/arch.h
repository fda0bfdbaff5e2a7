/* SPDX-License-Identifier: MIT */
/* What an architecture gives the core: its register files, its tables, and a few decisions. */
#ifndef KC_ARCH_H
#define KC_ARCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "context.h"
#include "errors.h"
#include "fields.h"

struct kc_vcpu;
struct kc_vm;

extern const char kc_arch_name[]; /* "x86_64", "arm64" or "riscv64" */
extern const char kc_arch_no_device[]; /* what to do where there is no KVM */
/* What runs the guests: "svm", "vmx", "pvm", "arm64", "riscv64" or "unknown". */
const char *kc_arch_backend(void);

/*
 * Whether KVM forgets KVM_GUESTDBG_SINGLESTEP in the middle: it sets the guest's trap flag once, and loses it with
 * the next instruction that it emulates itself (kvm_set_rflags), until it is told again.
 */
bool kc_arch_loses_step(void);
/* The type for KVM_CREATE_VM: the user's, with what this host needs where he leaves it open. */
unsigned long kc_arch_vm_type(int kvm_fd, unsigned long type);

/* None: this architecture has no vCPU yet. */
extern const struct kc_file kc_arch_files[];
extern const unsigned int kc_arch_file_count;
/* The general registers' index among them. */
extern const unsigned int kc_arch_regs;

/* The structures that users see: a register file's fields under its public name. */
struct kc_register_file {
	const char *attribute; /* the vCPU's attribute, such as "regs" */
	const char *type; /* the public type, such as "Regs" */
	unsigned int file; /* index in kc_arch_files */
	const struct kc_field *fields;
	const char *doc;
};
extern const struct kc_register_file kc_arch_register_files[];
extern const unsigned int kc_arch_register_file_count;

struct kc_msr_name {
	uint32_t index;
	const char *name;
};
extern const struct kc_msr_name kc_arch_msr_names[];
extern const unsigned int kc_arch_msr_name_count;

/* Right after the kernel made the vCPU. */
int kc_arch_vcpu_start(struct kc_vcpu *vcpu, struct kc_error *err);
/* The program counter at the last exit. */
uint64_t kc_arch_pc(struct kc_vcpu *vcpu);
/* Before an entry: deliver queued interrupts (V17) as far as the guest can take them. */
int kc_arch_deliver_interrupts(struct kc_vcpu *vcpu, struct kc_error *err);
/* Whether a maskable interrupt would end a halt of the guest. */
bool kc_arch_takes_interrupts(struct kc_vcpu *vcpu);
/* V19: an event that is in flight and that the context does not show; 1 yes, 0 no, -1 error. */
int kc_arch_has_pending_event(struct kc_vcpu *vcpu, struct kc_error *err);
/* Whether the last exit, a DebugExit, is a single step's. */
bool kc_arch_is_single_step(struct kc_vcpu *vcpu);
/*
 * Whether the single step that began at `from` was a halt, and the kernel has forgotten it: KVM's instruction
 * emulator reports the step only, and would go on behind the halt.
 */
bool kc_arch_lost_halt(struct kc_vcpu *vcpu, uint64_t from);
/* Whether the instruction there is a halt. */
bool kc_arch_halt_at(struct kc_vcpu *vcpu, uint64_t pc);
/* Whether the instruction at the program counter is one that repeats, as string instructions do. */
bool kc_arch_at_repeat(struct kc_vcpu *vcpu);
/* Where the upper halves of KC_FIELD_SPLIT begin in this file; 0: the processor has none. */
size_t kc_arch_split_offset(struct kc_vcpu *vcpu);
/* A field of the file was written, at this offset: keep what belongs together in step. */
void kc_arch_field_written(unsigned int file, void *data, const struct kc_field *field);

int kc_arch_get_msr(struct kc_vcpu *vcpu, uint32_t index, uint64_t *value, struct kc_error *err);
int kc_arch_set_msr(struct kc_vcpu *vcpu, uint32_t index, uint64_t value, struct kc_error *err);
/* The indices of the MSRs that can be saved and restored, freed by the caller. */
uint32_t *kc_arch_msr_list(struct kc_vm *vm, size_t *count, struct kc_error *err);

/* Seven words an entry: function, index, flags, eax, ebx, ecx, edx. Freed by the caller. */
struct kc_cpuid_entry {
	uint32_t word[7];
};
struct kc_cpuid_entry *kc_arch_get_cpuid(struct kc_vcpu *vcpu, size_t *count, struct kc_error *err);
int kc_arch_set_cpuid(struct kc_vcpu *vcpu, const struct kc_cpuid_entry *entries, size_t count,
		      struct kc_error *err);
/*
 * Whether two tables are the same but for what belongs to the one vCPU (its interrupt controller's id) or
 * follows the guest's registers.
 */
bool kc_arch_cpuid_same(const struct kc_cpuid_entry *a, size_t a_count,
			const struct kc_cpuid_entry *b, size_t b_count);

/* The linear address's physical one; 1: it has none. */
int kc_arch_translate(struct kc_vcpu *vcpu, uint64_t address, uint64_t *physical,
		      struct kc_error *err);

#endif
