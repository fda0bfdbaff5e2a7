// SPDX-License-Identifier: MIT
/* V19, V20: drained is consistent: a numbered log of a running guest has no gap and no repetition. */
#include "guest.h"

#include "drain.h"

static struct guest guest;
static struct recorder recorder;
static uint16_t expected;
static int told;

static void number(struct recorder *unused, struct kc_access *access)
{
	check(access->is_write && kc_access_value(access) == expected);
	expected++;
}

static int drained(void *opaque, struct kc_error *error)
{
	told++;
	return 0;
}

static void resume(struct kc_vcpu *vcpu)
{
	check_ok(kc_vcpu_claim(vcpu, &err));
	check_ok(kc_vcpu_resume(vcpu, &err));
	kc_vcpu_release(vcpu);
}

static void *drainer(void *arg)
{
	unsigned int seed = 1;

	for (int i = 0; i < 2000; i++) {
		uint64_t until = now_ns() + (uint64_t)rand_r(&seed) % 50000;

		while (now_ns() < until)
			;
		check(kc_vcpu_drain(arg, &err) >= 0);
		while (atomic_load(&((struct kc_vcpu *)arg)->requests) & KC_REQUEST_DRAIN)
			;
	}
	return NULL;
}

/* From another thread, at random moments of a guest that writes all the time. */
static void test_cycles(struct kc_vcpu *vcpu)
{
	pthread_t thread;
	int cycles = 0;

	vcpu->hooks.drained = drained;
	check(!pthread_create(&thread, NULL, drainer, vcpu));
	while (pthread_tryjoin_np(thread, NULL)) {
		if (run_for(vcpu, PS_PER_MS / 5, NULL))
			check(err.kind == KC_ERR_STATE); /* it was drained between two runs */
		check_ok(kc_vcpu_claim(vcpu, &err));
		if (vcpu->drained) {
			check(vcpu->status == KC_IDLE && !vcpu->context.stale);
			cycles++;
			check_ok(kc_vcpu_resume(vcpu, &err));
			check(vcpu->status == KC_RUNNING);
		}
		kc_vcpu_release(vcpu);
	}
	check(cycles > 50 && told > 0 && recorder.count > 100);
	resume(vcpu);
}

static void test_states(struct kc_vcpu *vcpu)
{
	uint64_t delay;
	int done;

	check_ok(kc_vcpu_claim(vcpu, &err));
	while (vcpu->status != KC_SERVICE)
		check_ok(kc_vcpu_tick(vcpu, &delay, &err));
	told = 0;
	check(kc_vcpu_drain(vcpu, &err) == 0 && vcpu->draining);
	check(kc_vcpu_switch_out(vcpu, &err) == -1 && err.kind == KC_ERR_STATE);
	check(kc_vcpu_take_over_check(vcpu, &err) == -1 && err.kind == KC_ERR_STATE);
	for (int i = 0; i < 3 && !vcpu->drained; i++)
		check_ok(kc_vcpu_tick(vcpu, &delay, &err));
	check(vcpu->drained && !vcpu->draining && told == 1 && vcpu->status == KC_IDLE);
	check(kc_vcpu_drain(vcpu, &err) == 1 && told == 1);
	check(kc_vcpu_tick(vcpu, &delay, &err) == -1 && err.kind == KC_ERR_STATE);
	check(kc_vcpu_run(vcpu, 1, &delay, &err) == -1 && err.kind == KC_ERR_STATE);
	/* An inactive context stays Idle. */
	kc_vcpu_suspend(vcpu);
	check_ok(kc_vcpu_resume(vcpu, &err));
	check(vcpu->status == KC_IDLE);
	done = kc_vcpu_drain(vcpu, &err);
	check(done == 1);
	check_ok(kc_vcpu_resume(vcpu, &err));
	kc_vcpu_activate(vcpu);
	check(vcpu->status == KC_RUNNING);
	/* Running: at once. */
	check(kc_vcpu_drain(vcpu, &err) == 1 && !vcpu->context.stale);
	check_ok(kc_vcpu_resume(vcpu, &err));
	kc_vcpu_release(vcpu);
}

static void drain_now(struct kc_vcpu *vcpu)
{
	check_ok(kc_vcpu_claim(vcpu, &err));
	while (!vcpu->drained) {
		int done = kc_vcpu_drain(vcpu, &err);
		uint64_t delay;

		check(done >= 0);
		if (!done)
			check_ok(kc_vcpu_tick(vcpu, &delay, &err));
	}
	kc_vcpu_release(vcpu);
}

/* Two vCPUs hand the guest to each other: the log goes on. The registers are moved as the binding does. */
static void test_take_over(struct kc_vcpu *first)
{
	struct kc_vcpu *vcpus[2] = { first, make_vcpu(&guest) };
	size_t before = recorder.count;

	drain_now(vcpus[1]);
	check_ok(kc_vcpu_claim(vcpus[1], &err));
	check_ok(kc_vcpu_switch_out(vcpus[1], &err));
	check(kc_vcpu_resume(vcpus[1], &err) == -1 && err.kind == KC_ERR_STATE);
	check(kc_vcpu_run(vcpus[1], 1, &(uint64_t){ 0 }, &err) == -1 && err.kind == KC_ERR_STATE);
	kc_vcpu_release(vcpus[1]);
	for (int i = 0; i < 300; i++) {
		struct kc_vcpu *from = vcpus[i % 2], *to = vcpus[1 - i % 2];

		check_ok(run_for(from, PS_PER_MS / 20, NULL));
		drain_now(from);
		check_ok(kc_vcpu_claim(from, &err) || kc_vcpu_claim(to, &err));
		check_ok(kc_vcpu_switch_out(from, &err));
		check_ok(kc_vcpu_take_over_check(to, &err));
		for (unsigned int file = 0; file < KC_X86_FILES; file++) {
			void *old, *new;

			if (!(from->context.present & 1u << file))
				continue;
			old = kc_context_read(from, file, &err);
			new = kc_context_write(to, file, &err);
			check(old && new);
			memcpy(new, old, from->context.size[file]);
		}
		check_ok(kc_context_flush(to, &err));
		kc_vcpu_take_over_done(to, from->active);
		check_ok(kc_vcpu_resume(to, &err));
		kc_vcpu_release(from);
		kc_vcpu_release(to);
	}
	check(recorder.count > before + 300);
	kc_vcpu_put(vcpus[1]);
}

int main(void)
{
	struct kc_range *range;
	struct kc_vcpu *vcpu;

	guest = make_guest();
	vcpu = make_vcpu(&guest);
	recorder.then = number;
	range = map_recorder(&guest, KC_MMIO, MMIO, 2, &recorder);
	check(range);
	put_code(&guest, CODE, 0xa3, 0, 0, 0x40, 0xeb, 0xfa); /* mov [0], ax; inc ax; back */
	test_cycles(vcpu);
	test_states(vcpu);
	test_take_over(vcpu);
	kc_range_put(range, guest.vm);
	kc_vcpu_put(vcpu);
	free_guest(&guest);
	return 0;
}
