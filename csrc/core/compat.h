/* SPDX-License-Identifier: MIT */
/*
 * The kernel's interface as this code uses it. A user's headers may be older than the kernel: what the code
 * needs and an older header lacks stands here. What a kernel lacks is found out at run time.
 */
#ifndef KC_COMPAT_H
#define KC_COMPAT_H

#include <linux/kvm.h>
#include <stdint.h>

#ifndef KVM_CAP_XSAVE2 /* Linux 5.17 */
#define KVM_CAP_XSAVE2 208
#endif
#ifndef KVM_GET_XSAVE2
#define KVM_GET_XSAVE2 _IOR(KVMIO, 0xcf, struct kvm_xsave)
#endif

#ifndef KVM_EXIT_NOTIFY /* Linux 6.0 */
#define KVM_EXIT_NOTIFY 37
#endif
#ifndef KVM_EXIT_LOONGARCH_IOCSR /* Linux 6.10 */
#define KVM_EXIT_LOONGARCH_IOCSR 38
#endif
#ifndef KVM_EXIT_MEMORY_FAULT /* Linux 6.8 */
#define KVM_EXIT_MEMORY_FAULT 39
#endif
#ifndef KVM_EXIT_TDX /* Linux 6.16 */
#define KVM_EXIT_TDX 40
#endif

/* KVM_EXIT_MEMORY_FAULT's part of struct kvm_run's union */
struct kc_memory_fault {
	uint64_t flags, gpa, size;
};

/* One-register access to x86's MSRs: Linux 6.18 */
#ifndef KVM_X86_REG_TYPE_MSR
#define KVM_X86_REG_TYPE_MSR 2
#endif
#ifndef KVM_REG_X86
#define KVM_REG_X86 0x2000000000000000ULL
#endif
#define KC_X86_REG_MSR(index)                                                                      \
	(KVM_REG_X86 | KVM_REG_SIZE_U64 | (uint64_t)KVM_X86_REG_TYPE_MSR << 32 | (index))

#endif
