// A libcuda.so.1 that says it is an old driver, for the test of the error that this makes.

extern "C" {

int cuDriverGetVersion(int* version) {
  *version = 11020;
  return 0;
}

int cuInit(unsigned) { return 0; }
}
