/* libcuda.so.1 for tests on machines without a GPU: a driver that says its version, and with which status it starts. */
#include <stdlib.h>
#include <string.h>

static int number(const char *variable) { const char *text = getenv(variable); return text ? atoi(text) : 0; }

int cuInit(unsigned flags) { return number("STUB_DRIVER_STATUS"); }
int cuDriverGetVersion(int *version) { *version = number("STUB_DRIVER_VERSION"); return 0; }

/* The CUDA runtime asks this one for all other functions by name. 500: not found. */
int cuGetProcAddress_v2(const char *name, void **function, int version, unsigned long long flags, int *missing)
{
    *function = !strcmp(name, "cuInit") ? (void *)cuInit
              : !strcmp(name, "cuDriverGetVersion") ? (void *)cuDriverGetVersion
              : !strcmp(name, "cuGetProcAddress") ? (void *)cuGetProcAddress_v2 : NULL;
    if (missing) *missing = *function == NULL;
    return *function ? 0 : 500;
}
