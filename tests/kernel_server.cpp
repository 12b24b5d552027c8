// Calls functions of a kernels' library for another process: `kernel_server LIBRARY`, see tests/emulated_kernels.py.
//
// A request is the name of a function, the memory that its pointers point into, and its arguments; the answer is that
// memory afterwards. Numbers are of this machine's kind, which has to be the asking one's: little-endian, 64 bits.

#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace {

enum Kind : int64_t { kInteger, kNull, kPointer };

[[noreturn]] void fail(const std::string& why) {
  std::fprintf(stderr, "kernel_server: %s\n", why.c_str());
  std::exit(1);
}

void read(void* to, size_t size) {
  if (std::fread(to, 1, size, stdin) != size) fail("a request ends early");
}

template <class T>
T next() {
  T x;
  read(&x, sizeof x);
  return x;
}

// All kernels: up to 12 integers or pointers, and one float. Those are handed over in registers and on the stack of
// their own, in their order, and a function leaves alone what it is given beyond its parameters (x86-64, aarch64).
constexpr int kMost = 12;
using Function = void (*)(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                          int64_t, int64_t, float);

}  // namespace

int main(int count, char** given) {
  void* library = count == 2 ? dlopen(given[1], RTLD_NOW) : nullptr;
  if (!library) fail(count == 2 ? dlerror() : "it takes a library");
  int64_t size;
  while (std::fread(&size, sizeof size, 1, stdin) == 1) {
    std::string name(size, ' ');
    read(name.data(), size);
    const auto function = reinterpret_cast<Function>(dlsym(library, name.c_str()));
    if (!function) fail(dlerror());
    std::vector<std::vector<char>> memory(next<int64_t>());
    for (auto& part : memory) {
      part.resize(next<int64_t>());
      read(part.data(), part.size());
    }
    int64_t a[kMost] = {};
    const float number = next<float>();
    const int64_t arguments = next<int64_t>();
    if (arguments > kMost) fail(name + " has too many arguments");
    for (int64_t i = 0; i < arguments; ++i) {
      const int64_t kind = next<int64_t>(), value = next<int64_t>(), offset = next<int64_t>();
      a[i] = kind == kInteger ? value : kind == kPointer ? reinterpret_cast<int64_t>(memory[value].data() + offset) : 0;
    }
    function(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11], number);
    for (const auto& part : memory) std::fwrite(part.data(), 1, part.size(), stdout);
    std::fflush(stdout);
  }
}
