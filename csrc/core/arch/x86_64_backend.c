// SPDX-License-Identifier: MIT
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "arch.h"
#include "cleanup.h"

static bool module_loaded(const char *name)
{
	char path[64];

	snprintf(path, sizeof(path), "/sys/module/%s", name);
	return access(path, F_OK) == 0;
}

static bool processor_has(const char *flag)
{
	FILE *file = fopen("/proc/cpuinfo", "re");
	kc_auto_free char *line = NULL;
	size_t capacity = 0, length = strlen(flag);
	bool found = false;

	if (!file)
		return false;
	while (!found && getline(&line, &capacity, file) > 0) {
		if (strncmp(line, "flags", 5))
			continue;
		for (const char *at = line; !found && (at = strstr(at, flag)); at += length)
			found = at[-1] == ' ' && (at[length] == ' ' || at[length] == '\n');
		break;
	}
	fclose(file);
	return found;
}

static const char *look(void)
{
	if (module_loaded("kvm_pvm"))
		return "pvm";
	if (processor_has("svm") && module_loaded("kvm_amd"))
		return "svm";
	if (processor_has("vmx") && module_loaded("kvm_intel"))
		return "vmx";
	if (processor_has("svm"))
		return "svm";
	if (processor_has("vmx"))
		return "vmx";
	/* KVM without either extension can only be a paravirtual backend. */
	return access("/dev/kvm", F_OK) == 0 ? "pvm" : "unknown";
}

const char *kc_arch_backend(void)
{
	static _Atomic(const char *) found; /* it does not change, and takes reading a file */
	const char *backend = atomic_load(&found);

	if (!backend) {
		backend = look();
		atomic_store(&found, backend);
	}
	return backend;
}

bool kc_arch_loses_step(void)
{
	/* A paravirtual backend emulates instead of setting the trap flag. */
	return strcmp(kc_arch_backend(), "pvm") != 0;
}
