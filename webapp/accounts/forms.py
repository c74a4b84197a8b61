"""Forms of the people pages."""

from __future__ import annotations

from django import forms

from webapp.accounts.models import Role, User


class ProfileForm(forms.ModelForm):
    class Meta:
        model = User
        fields = ["first_name", "last_name", "email", "theme"]


class UserForm(forms.ModelForm):
    """A new member; they sign in with the link that the page shows once."""

    class Meta:
        model = User
        fields = ["username", "email", "role"]
        help_texts = {"username": "Letters, digits and @ . + - _ only."}


class RoleForm(forms.Form):
    role = forms.ChoiceField(choices=Role.choices)
    active = forms.BooleanField(required=False)
