// SPDX-License-Identifier: MIT
#include "no_vcpu.h"

const char kc_arch_name[] = "riscv64";
const char kc_arch_no_device[] =
	"load the kernel module (modprobe kvm), on a processor that has the "
	"hypervisor extension (h in the isa line of /proc/cpuinfo)";

const char *kc_arch_backend(void)
{
	return "riscv64";
}

unsigned long kc_arch_vm_type(int kvm_fd, unsigned long type)
{
	return type;
}
