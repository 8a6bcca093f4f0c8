// Instead of CuPy's file of this name, which includes Thrust's configuration for nothing but these two names.
#pragma once
#define THRUST_NAMESPACE_BEGIN namespace thrust {
#define THRUST_NAMESPACE_END }
