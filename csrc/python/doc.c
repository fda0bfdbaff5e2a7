// SPDX-License-Identifier: MIT
/* Docstrings by name, for types that are made from tables. */
#include <stdlib.h>
#include <string.h>

#include "module.h"

struct text {
	const char *name, *doc;
};

/* Sorted by name. */
static const struct text texts[] = {
#define X(name) { #name, DOC_##name },
	DOCS(X)
#undef X
};

static int compare(const void *name, const void *text)
{
	return strcmp(name, ((const struct text *)text)->name);
}

const char *pc_doc(const char *type, const char *member)
{
	char name[128];
	const struct text *found;

	if (snprintf(name, sizeof(name), member ? "%s_%s" : "%s", type, member) >=
	    (int)sizeof(name))
		return NULL;
	found = bsearch(name, texts, sizeof(texts) / sizeof(texts[0]), sizeof(texts[0]), compare);
	return found ? found->doc : NULL;
}
