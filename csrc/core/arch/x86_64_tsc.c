// SPDX-License-Identifier: MIT
#include <errno.h>
#include <sys/ioctl.h>

#include "vcpu.h"
#include "x86_64.h"

int kc_x86_get_tsc_khz(struct kc_vcpu *vcpu, uint32_t *khz, struct kc_error *err)
{
	int result = ioctl(vcpu->fd, KVM_GET_TSC_KHZ, 0);

	if (result < 0)
		return kc_fail_os(err, "KVM_GET_TSC_KHZ");
	*khz = (uint32_t)result;
	return 0;
}

int kc_x86_set_tsc_khz(struct kc_vcpu *vcpu, uint32_t khz, struct kc_error *err)
{
	if (kc_context_flush(vcpu, err))
		return -1;
	if (!ioctl(vcpu->fd, KVM_SET_TSC_KHZ, (unsigned long)khz)) {
		kc_context_invalidate(vcpu);
		return 0;
	}
	if (errno == EINVAL)
		return kc_fail(
			err, KC_ERR_UNSUPPORTED,
			"KVM_SET_TSC_KHZ: this host cannot give the guest a time stamp counter of "
			"%u kHz (KVM_CAP_TSC_CONTROL)",
			khz);
	return kc_fail_os(err, "KVM_SET_TSC_KHZ");
}
