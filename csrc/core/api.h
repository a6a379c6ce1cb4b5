// Export macro of _C_core. Everything else in the library is hidden.
#pragma once
#define DSF_API __attribute__((visibility("default")))
