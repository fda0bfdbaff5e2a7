/* SPDX-License-Identifier: MIT */
/* What the files of x86-64 share. */
#ifndef KC_X86_64_H
#define KC_X86_64_H

#include <stdint.h>

#include "errors.h"
#include "kvm.h"

/* The register files by their index in kc_arch_files, which is the order of pushing. */
enum kc_x86_file {
	KC_X86_SREGS, /* first: the modes, which the kernel checks much of the rest against */
	KC_X86_REGS,
	KC_X86_XCRS, /* before the area whose layout they allow */
	KC_X86_XSAVE,
	KC_X86_DEBUGREGS,
	KC_X86_MP_STATE,
	KC_X86_LAPIC,
	KC_X86_EVENTS, /* last: the others may queue or drop events */
	KC_X86_FILES,
};

/* The CPUID leaves that the host supports; lives as long as the device's object. */
const struct kvm_cpuid2 *kc_x86_supported_cpuid(struct kc_kvm *kvm, struct kc_error *err);

struct kc_vcpu;

/* The frequency of the guest's time stamp counter. */
int kc_x86_get_tsc_khz(struct kc_vcpu *vcpu, uint32_t *khz, struct kc_error *err);
int kc_x86_set_tsc_khz(struct kc_vcpu *vcpu, uint32_t khz, struct kc_error *err);

#endif
