// SPDX-License-Identifier: MIT
#include "drain.h"

#include "arch/arch.h"
#include "vcpu.h"
#include "vm.h"

/* An event that KVM holds needs guest time to be delivered: a millisecond of the host is plenty. */
#define EVENT_NS 1000000

/* 1: drained, 0: not yet, -1: an error (V19) */
static int try_drain(struct kc_vcpu *vcpu, struct kc_error *err)
{
	int pending;

	if (vcpu->switched_out)
		return 1;
	if (vcpu->status == KC_SERVICE || vcpu->status == KC_COMPLETION)
		return 0;
	if (vcpu->status == KC_RUNNING) {
		pending = kc_arch_has_pending_event(vcpu, err);
		if (pending)
			return pending < 0 ? -1 : 0;
		vcpu->status = KC_IDLE;
	}
	if (kc_context_pull(vcpu, err))
		return -1;
	vcpu->drained = true;
	kc_trace(vcpu, Drain, "drained");
	return 1;
}

int kc_drain_limit(struct kc_vcpu *vcpu, uint64_t *limit, struct kc_error *err)
{
	int pending = 0;

	*limit = 0;
	if (vcpu->status == KC_RUNNING)
		pending = kc_arch_has_pending_event(vcpu, err);
	if (pending > 0)
		*limit = (uint64_t)(EVENT_NS / vcpu->ns_per_tick);
	return pending < 0 ? -1 : 0;
}

int kc_drain_again(struct kc_vcpu *vcpu, struct kc_error *err)
{
	int done = try_drain(vcpu, err);

	if (done <= 0)
		return done;
	vcpu->draining = false;
	return vcpu->hooks.drained ? vcpu->hooks.drained(vcpu->hooks.opaque, err) : 0;
}

int kc_vcpu_drain(struct kc_vcpu *vcpu, struct kc_error *err)
{
	struct kc_error busy;
	int done = 0;

	if (kc_vcpu_claim(vcpu, &busy)) {
		if (kc_vm_check(vcpu->vm, err))
			return -1;
		kc_vcpu_request(vcpu, KC_REQUEST_DRAIN);
		return 0;
	}
	if (kc_vcpu_check(vcpu, err)) {
		done = -1;
	} else if (atomic_load(&vcpu->kick.thread)) {
		/* A handler inside its own run */
		kc_vcpu_request(vcpu, KC_REQUEST_DRAIN);
	} else if (!vcpu->drained) {
		done = try_drain(vcpu, err);
		vcpu->draining = done == 0;
	} else {
		done = 1;
	}
	kc_vcpu_release(vcpu);
	return done;
}

int kc_vcpu_resume(struct kc_vcpu *vcpu, struct kc_error *err)
{
	uint64_t now = kc_queue_now(vcpu->queue);

	if (kc_vcpu_check(vcpu, err))
		return -1;
	if (vcpu->switched_out)
		return kc_fail(err, KC_ERR_STATE, "%s is switched out: it cannot go on",
			       vcpu->name);
	atomic_fetch_and(&vcpu->requests, ~KC_REQUEST_DRAIN);
	vcpu->draining = vcpu->drained = false;
	if (vcpu->status == KC_IDLE && vcpu->active) {
		vcpu->status = KC_RUNNING;
		if (vcpu->next_step < now)
			vcpu->next_step = now;
	}
	kc_trace(vcpu, Drain, "resumed");
	return 0;
}

int kc_vcpu_switch_out(struct kc_vcpu *vcpu, struct kc_error *err)
{
	if (kc_vcpu_check(vcpu, err))
		return -1;
	if (!vcpu->drained)
		return kc_fail(err, KC_ERR_STATE, "%s is not drained: drain() it first",
			       vcpu->name);
	vcpu->switched_out = true;
	kc_trace(vcpu, Drain, "switched out");
	return 0;
}

int kc_memory_mode_check(struct kc_vm *vm, struct kc_error *err)
{
	if (!atomic_load(&vm->hooks.has_memory_mode))
		return 0;
	return vm->hooks.memory_mode(vm->hooks.opaque, err);
}

int kc_vcpu_take_over_check(struct kc_vcpu *vcpu, struct kc_error *err)
{
	if (kc_vcpu_check(vcpu, err) || kc_memory_mode_check(vcpu->vm, err))
		return -1;
	if (vcpu->status == KC_SERVICE || vcpu->status == KC_COMPLETION ||
	    atomic_load(&vcpu->kick.thread))
		return kc_fail(err, KC_ERR_STATE,
			       "%s is in the middle of an access: drain() it before it takes over",
			       vcpu->name);
	return 0;
}

void kc_vcpu_take_over_done(struct kc_vcpu *vcpu, bool active)
{
	uint64_t now = kc_queue_now(vcpu->queue);

	vcpu->switched_out = false;
	vcpu->drained = true;
	vcpu->status = KC_IDLE;
	if (vcpu->next_step < now)
		vcpu->next_step = now;
	if (!active)
		vcpu->idle_since = vcpu->next_step;
	vcpu->active = active;
	kc_trace(vcpu, Drain, "took over");
}
