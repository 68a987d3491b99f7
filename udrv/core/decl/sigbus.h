#define UDRV_SIGBUS_RANGES ...

int udrv_sigbus_watch(void *start, size_t size);
void udrv_sigbus_unwatch(int range);
int udrv_sigbus_gone(int range);
