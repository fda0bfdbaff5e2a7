// SPDX-License-Identifier: MIT
#include <stdbool.h>
#include <string.h>

#include "arch.h"

enum { FUNCTION, INDEX, FLAGS, EAX, EBX, ECX, EDX };

#define APIC (1u << 9) /* of leaf 1's edx: follows APIC_BASE */
#define MONITOR (1u << 3) /* of its ecx: follows MISC_ENABLE */
#define OSXSAVE (1u << 27) /* of its ecx: follows CR4 */
#define OSPKE (1u << 4) /* of leaf 7's ecx: follows CR4 */

/* Take away what differs without the processor being another: Intel SDM vol. 2, CPUID. */
static struct kc_cpuid_entry essence(const struct kc_cpuid_entry *entry)
{
	struct kc_cpuid_entry e = *entry;

	switch (e.word[FUNCTION]) {
	case 1:
		e.word[EBX] &= 0x00ffffff; /* the local APIC's id */
		e.word[ECX] &= ~(MONITOR | OSXSAVE);
		e.word[EDX] &= ~APIC;
		break;
	case 7:
		e.word[ECX] &= ~OSPKE;
		break;
	case 0xb:
	case 0x1f:
		e.word[EDX] = 0; /* the local APIC's id */
		break;
	case 0xd: /* the size of the area for what XCR0 and XSS enable */
		if (e.word[INDEX] < 2)
			e.word[EBX] = 0;
		break;
	case 0x8000001e:
		e.word[EAX] = 0; /* the local APIC's id (AMD APM vol. 3, appendix E) */
		break;
	}
	return e;
}

bool kc_arch_cpuid_same(const struct kc_cpuid_entry *a, size_t a_count,
			const struct kc_cpuid_entry *b, size_t b_count)
{
	if (a_count != b_count)
		return false;
	for (size_t i = 0; i < a_count; i++) {
		struct kc_cpuid_entry one = essence(&a[i]), other = essence(&b[i]);

		if (memcmp(&one, &other, sizeof(one)))
			return false;
	}
	return true;
}
