int real = 1;
