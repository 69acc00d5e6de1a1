/* Gives each file it is named to a target, once: what a fuzzer found is replayed by any compiler with sanitizers. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerInitialize(int *argc, char ***argv) __attribute__((weak));
int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

enum { MOST = 1 << 20 };

struct input {
    uint8_t *bytes;
    size_t size;
};

/* To its last byte and no further, so that a sanitizer sees whoever reads on. */
static struct input read_input(const char *path)
{
    static uint8_t all[MOST];
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        perror(path);
        exit(2);
    }
    struct input input = {.size = fread(all, 1, sizeof all, file)};
    fclose(file);
    input.bytes = malloc(input.size ? input.size : 1);
    for (size_t i = 0; i < input.size; i++)
        input.bytes[i] = all[i];
    return input;
}

/* All are read first: a target may leave for where they cannot be seen. */
int main(int argc, char **argv)
{
    struct input *inputs = calloc((size_t)argc, sizeof *inputs);
    for (int i = 1; i < argc; i++)
        inputs[i] = read_input(argv[i]);
    if (LLVMFuzzerInitialize != NULL)
        LLVMFuzzerInitialize(&argc, &argv);
    for (int i = 1; i < argc; i++) {
        LLVMFuzzerTestOneInput(inputs[i].bytes, inputs[i].size);
        free(inputs[i].bytes);
    }
    free(inputs);
    printf("%d inputs\n", argc - 1);
    return 0;
}
