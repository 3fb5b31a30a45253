#include "emulation.hpp"
