// SPDX-License-Identifier: MIT
#include <sys/ioctl.h>

#include "compat.h"
#include "no_vcpu.h"

const char kc_arch_name[] = "arm64";
const char kc_arch_no_device[] = "boot the kernel at exception level 2, as the firmware or whoever "
				 "runs this virtual machine decides (dmesg | grep kvm tells)";

const char *kc_arch_backend(void)
{
	return "arm64";
}

/* 0 stands for guest-physical addresses of 40 bits, and there are hosts that have fewer. */
unsigned long kc_arch_vm_type(int kvm_fd, unsigned long type)
{
	int bits;

	if (type & KVM_VM_TYPE_ARM_IPA_SIZE_MASK)
		return type;
	bits = ioctl(kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_ARM_VM_IPA_SIZE);
	return bits > 0 && bits < 40 ? type | KVM_VM_TYPE_ARM_IPA_SIZE(bits) : type;
}
