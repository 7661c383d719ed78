/* SPDX-License-Identifier: Apache-2.0 */
#define _POSIX_C_SOURCE 200809L

#include "refused.h"

#include "loader_status.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* The link that holds the file, or the NULL at the end. Under the state mutex. */
static struct moe_refused **find(struct moe_loader *loader, const char *sha256)
{
    struct moe_refused **link = &loader->refused;
    while (*link != NULL && strcasecmp((*link)->sha256, sha256) != 0) {
        link = &(*link)->next;
    }
    return link;
}

bool moe_refused_holds_locked(struct moe_loader *loader, const char *sha256)
{
    return *find(loader, sha256) != NULL;
}

bool moe_refused_holds(struct moe_loader *loader, const char *sha256)
{
    pthread_mutex_lock(&loader->state);
    const bool holds = moe_refused_holds_locked(loader, sha256);
    pthread_mutex_unlock(&loader->state);
    return holds;
}

void moe_refused_add(struct moe_loader *loader, struct moe_refused **refusal, const char *sha256)
{
    struct moe_refused **link = find(loader, sha256);
    if (*link == NULL) {
        snprintf((*refusal)->sha256, sizeof((*refusal)->sha256), "%s", sha256);
        *link = *refusal;
        *refusal = NULL;
    }
}

void moe_refused_finish(struct moe_loader *loader)
{
    while (loader->refused != NULL) {
        struct moe_refused *refused = loader->refused;
        loader->refused = refused->next;
        free(refused);
    }
}

int32_t moe_loader_allow(struct moe_loader *loader, const char *sha256, struct moe_error *error)
{
    int32_t status = moe_loader_check_not_null(loader, "loader", error);
    if (status == MOE_STATUS_OK) {
        status = moe_loader_check_not_null(sha256, "sha256", error);
    }
    if (status != MOE_STATUS_OK) {
        return status;
    }
    pthread_mutex_lock(&loader->state);
    struct moe_refused **link = find(loader, sha256);
    struct moe_refused *refused = *link;
    if (refused != NULL) {
        *link = refused->next;
    }
    pthread_mutex_unlock(&loader->state);
    if (refused == NULL) {
        return moe_loader_status_set(error, MOE_STATUS_INVALID_ARGUMENT,
                                     "sha256 \"%.64s\" is not refused",
                                     MOE_LOADER_SHOW_TEXT(sha256));
    }
    free(refused);
    return MOE_STATUS_OK;
}
