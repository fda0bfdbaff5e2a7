// SPDX-License-Identifier: MIT
#include "irq.h"

#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

#include "cleanup.h"
#include "vm.h"

int kc_irq_create_chip(struct kc_vm *vm, struct kc_error *err)
{
	if (kc_vm_check(vm, err))
		return -1;
	if (vm->vcpu_count)
		return kc_fail(err, KC_ERR_STATE,
			       "the interrupt controller is made before the first vCPU");
	if (kc_vm_ioctl(vm, KVM_CREATE_IRQCHIP, "KVM_CREATE_IRQCHIP", NULL, err))
		return -1;
	vm->irqchip = true;
	return 0;
}

static int need_chip(struct kc_vm *vm, struct kc_error *err)
{
	if (kc_vm_check(vm, err))
		return -1;
	if (vm->irqchip)
		return 0;
	return kc_fail(
		err, KC_ERR_STATE,
		"the VM has no interrupt controller in the kernel: call create_irqchip() first");
}

int kc_irq_create_pit(struct kc_vm *vm, bool speaker_dummy, struct kc_error *err)
{
#ifdef KVM_CREATE_PIT2
	struct kvm_pit_config config = { .flags = speaker_dummy ? KVM_PIT_SPEAKER_DUMMY : 0 };

	if (need_chip(vm, err))
		return -1;
	return kc_vm_ioctl(vm, KVM_CREATE_PIT2, "KVM_CREATE_PIT2", &config, err);
#else
	(void)vm;
	(void)speaker_dummy;
	return kc_fail(err, KC_ERR_UNSUPPORTED,
		       "KVM_CREATE_PIT2: this architecture has no 8254 timer");
#endif
}

int kc_irq_line(struct kc_vm *vm, uint32_t gsi, uint32_t level, struct kc_error *err)
{
	struct kvm_irq_level line = { .irq = gsi, .level = level };

	if (need_chip(vm, err))
		return -1;
	return kc_vm_ioctl(vm, KVM_IRQ_LINE, "KVM_IRQ_LINE", &line, err);
}

int kc_irq_msi(struct kc_vm *vm, uint64_t address, uint32_t data, struct kc_error *err)
{
	struct kvm_msi msi = {
		.address_lo = (uint32_t)address,
		.address_hi = (uint32_t)(address >> 32),
		.data = data,
	};

	if (need_chip(vm, err))
		return -1;
	return kc_vm_ioctl(vm, KVM_SIGNAL_MSI, "KVM_SIGNAL_MSI", &msi, err);
}

int kc_irq_set_routing(struct kc_vm *vm, const struct kvm_irq_routing_entry *entries, size_t count,
		       struct kc_error *err)
{
	kc_auto_free struct kvm_irq_routing *table = NULL;

	if (need_chip(vm, err))
		return -1;
	if (count > 4096) /* KVM_MAX_IRQ_ROUTES */
		return kc_fail(err, KC_ERR_VALUE, "%zu routes: the kernel takes 4096", count);
	table = calloc(1, sizeof(*table) + count * sizeof(*entries));
	if (!table)
		return kc_fail(err, KC_ERR_MEMORY, "out of memory");
	table->nr = (uint32_t)count;
	memcpy(table->entries, entries, count * sizeof(*entries));
	return kc_vm_ioctl(vm, KVM_SET_GSI_ROUTING, "KVM_SET_GSI_ROUTING", table, err);
}

/* fd itself, or a new one that *made then owns. */
static int eventfd_or_new(int fd, int *made, struct kc_error *err)
{
	if (fd >= 0)
		return fd;
	*made = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (*made < 0)
		return kc_fail_os(err, "eventfd");
	return *made;
}

int kc_irq_fd(struct kc_vm *vm, uint32_t gsi, int fd, int resample_fd, bool remove,
	      struct kc_error *err)
{
	kc_auto_close int made = -1;
	struct kvm_irqfd irqfd = { .gsi = gsi };

	if (need_chip(vm, err))
		return -1;
	fd = eventfd_or_new(fd, &made, err);
	if (fd < 0)
		return -1;
	irqfd.fd = (uint32_t)fd;
	if (remove) {
		irqfd.flags = KVM_IRQFD_FLAG_DEASSIGN;
	} else if (resample_fd >= 0) {
		irqfd.flags = KVM_IRQFD_FLAG_RESAMPLE;
		irqfd.resamplefd = (uint32_t)resample_fd;
	}
	if (kc_vm_ioctl(vm, KVM_IRQFD, "KVM_IRQFD", &irqfd, err))
		return -1;
	made = -1;
	return fd;
}

int kc_irq_ioeventfd(struct kc_vm *vm, uint64_t address, uint32_t size, int fd,
		     const uint64_t *value, bool io, bool remove, struct kc_error *err)
{
	kc_auto_close int made = -1;
	struct kvm_ioeventfd request = {
		.addr = address,
		.len = size,
		.datamatch = value ? *value : 0,
		.flags = (value ? KVM_IOEVENTFD_FLAG_DATAMATCH : 0) |
			 (io ? KVM_IOEVENTFD_FLAG_PIO : 0) |
			 (remove ? KVM_IOEVENTFD_FLAG_DEASSIGN : 0),
	};

	if (size != 0 && size != 1 && size != 2 && size != 4 && size != 8)
		return kc_fail(err, KC_ERR_VALUE, "size %u: it is 0 (any), 1, 2, 4 or 8 bytes",
			       size);
	if (value && !size)
		return kc_fail(err, KC_ERR_VALUE, "a value can only match writes of a known size");
	if (value && size < 8 && *value >> (size * 8))
		return kc_fail(err, KC_ERR_VALUE, "the value does not fit in %u bytes", size);
	fd = eventfd_or_new(fd, &made, err);
	if (fd < 0)
		return -1;
	request.fd = fd;
	if (kc_vm_ioctl(vm, KVM_IOEVENTFD, "KVM_IOEVENTFD", &request, err))
		return -1;
	made = -1;
	return fd;
}
