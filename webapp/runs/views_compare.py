from django.http import HttpResponse


def _soon(request):
    return HttpResponse("")


compare = rollouts = create = check = preview = try_out = demo = _soon
