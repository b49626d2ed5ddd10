# Writes OUTPUT, a C file that defines `const char NAME[]` as the text of INPUT, so that nothing has to be found on disk
# at run time. Usage: cmake -DINPUT=... -DOUTPUT=... -DNAME=... -P embed.cmake
file(READ ${INPUT} hex HEX)
string(REGEX REPLACE "(................................)" "\\1\n" lines "${hex}")
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${lines}")
get_filename_component(input_name ${INPUT} NAME)
file(WRITE ${OUTPUT}
     "/* Made from ${input_name}. */\nextern const char ${NAME}[];\nconst char ${NAME}[] = {\n${bytes}0};\n")
