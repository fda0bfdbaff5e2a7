// SPDX-License-Identifier: MIT
/*
 * The core's own time per exit, without Python: a guest that is a stub (stub.h) writes to a byte sink.
 *
 *   core_bench [EXITS [ROUNDS]]
 *
 * For counting instructions: valgrind --tool=callgrind core_bench 100000 1
 */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "sink.h"
#include "stub.h"
#include "vcpu.h"
#include "vm.h"

static void emit(void *opaque, enum kc_trace_flag flag, uint64_t tick, const char *cpu,
		 const char *message)
{
	(void)opaque, (void)flag;
	fprintf(stderr, "%llu: %s: %s\n", (unsigned long long)tick, cpu, message);
}

static struct kc_trace trace = { .emit = emit };
static struct kc_error error;
static uint8_t text[1 << 20];

static void need(bool ok)
{
	if (ok)
		return;
	fprintf(stderr, "core_bench: %s\n", error.message);
	exit(1);
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static double run_ns(struct kc_vcpu *vcpu, uint64_t exits)
{
	struct timespec start, end;
	uint64_t passed;

	kc_vcpu_activate(vcpu);
	clock_gettime(CLOCK_MONOTONIC, &start);
	need(!kc_vcpu_run(vcpu, KC_NEVER, &passed, &error));
	clock_gettime(CLOCK_MONOTONIC, &end);
	return ((double)(end.tv_sec - start.tv_sec) * 1e9 + (double)(end.tv_nsec - start.tv_nsec)) /
	       (double)exits;
}

int main(int argc, char **argv)
{
	uint64_t exits = argc > 1 ? strtoull(argv[1], NULL, 0) : 20000;
	size_t rounds = argc > 2 ? strtoull(argv[2], NULL, 0) : 200;
	struct kc_vcpu_config config = { .host_factor = 1, .cpuid_supported = true };
	double *ours, *stubs;
	struct kc_kvm *kvm;
	struct kc_vm *vm;
	struct kc_vcpu *vcpu;
	struct kc_sink *sink;
	struct kc_device device;
	struct kc_range *range;

	if (!exits || !rounds) {
		fprintf(stderr, "usage: core_bench [EXITS [ROUNDS]]\n");
		return 2;
	}
	ours = calloc(rounds, sizeof(*ours));
	stubs = calloc(rounds, sizeof(*stubs));
	if (!ours || !stubs)
		return 1;
	need(!kc_kvm_open("/dev/kvm", &kvm, &error));
	need((vm = kc_vm_create(kvm, 0, 1000000000000, &trace, &error)));
	need((vcpu = kc_vcpu_create(vm, -1, &config, &error)));
	need(!kc_vcpu_claim(vcpu, &error) && !kc_vcpu_start(vcpu, &error));
	need((sink = kc_sink_create(sizeof(text), -1, &error)));
	device = kc_sink_device(sink);
	need((range = kc_bus_map(vm, KC_IO, 0x3f8, 8, &device, false, &error)));
	if (stub_arm(exits, false)) {
		fprintf(stderr, "core_bench: the vCPU's run structure is not in /proc/self/maps\n");
		return 1;
	}
	for (size_t i = 0; i < rounds; i++) {
		/* What was read makes room: a full sink has to drop a byte for each that comes. */
		kc_sink_read(sink, text, sizeof(text), true);
		ours[i] = run_ns(vcpu, exits);
		stubs[i] = stub_cost(exits);
	}
	qsort(ours, rounds, sizeof(*ours), compare);
	qsort(stubs, rounds, sizeof(*stubs), compare);
	/* What disturbs a round can only lengthen it. */
	printf("own time of an exit to the byte sink: lower decile %.1f ns, median %.1f ns; the stub's %.1f ns\n",
	       ours[rounds / 10] - stubs[rounds / 10], ours[rounds / 2] - stubs[rounds / 2],
	       stubs[rounds / 10]);
	kc_range_put(range, vm);
	kc_sink_put(sink);
	kc_vcpu_release(vcpu);
	kc_vcpu_put(vcpu);
	kc_vm_put(vm);
	kc_kvm_put(kvm);
	free(ours);
	free(stubs);
	return 0;
}
